"""Figure 13: critical neurons of the lowest MLP of a model of medium strength.

    python -m remem_jax.main --config=configs/figures/figure13.py --workdir=figures/figure13
    python -m remem_jax.main --config=configs/figures/figure13.py:mini --workdir=figures/mini13

Our copy of the paper's text says about Figures 7 to 15 only that 7 shows the top block of a strong
model, 8 to 13 bottom blocks and weak models, and 14 and 15 other data sets. The block, model and
data set here are our choice. configs/settings.py has all settings.
"""

from ml_collections import ConfigDict

from configs import analysis


def get_config(spec: str = "") -> ConfigDict:
    """Returns the analysis of the figure, or of its mini version."""
    return analysis.make_neurons(13, "i21k", 0, "caltech101", spec=spec)
