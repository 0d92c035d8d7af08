"""Figure 5: expertness of every MLP, for three pretrainings.

    python -m remem_jax.main --config=configs/figures/figure5.py --workdir=figures/figure5
    python -m remem_jax.main --config=configs/figures/figure5.py:mini --workdir=figures/figure5_mini

Our copy of the paper's text does not name the data set; Caltech-101 is our choice.
configs/settings.py has all settings.
"""

from ml_collections import ConfigDict

from configs import analysis


def get_config(spec: str = "") -> ConfigDict:
    """Returns the analysis of the figure, or of its mini version."""
    models = analysis.models(analysis.strengths(spec))
    title = f"Figure 5{' (mini)' if spec else ''}: expertness of every MLP"
    return analysis.make(title, models, ("expertness",), "caltech101")
