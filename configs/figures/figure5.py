"""Figure 5: expertness of every MLP, of models of three pretrainings.

    python -m remem_jax.main --config=configs/figures/figure5.py --workdir=figures/figure5
    python -m remem_jax.main --config=configs/figures/figure5.py:mini --workdir=figures/figure5_mini

The data set is lost from the paper's text that we have; Caltech-101 is our choice.
configs/settings.py has the settings.
"""

from ml_collections import ConfigDict

from configs import analysis


def get_config(spec: str = "") -> ConfigDict:
    """Returns the analysis of the figure, or of its mini version."""
    models = analysis.models(analysis.strengths(spec))
    title = f"Figure 5{' (mini)' if spec else ''}: expertness of every MLP"
    return analysis.make(title, models, ("expertness",), "caltech101")
