"""Figure 15: critical neurons of the top MLP of a strong model, on Pet.

    python -m remem_jax.main --config=configs/figures/figure15.py --workdir=figures/figure15
    python -m remem_jax.main --config=configs/figures/figure15.py:mini --workdir=figures/mini15

Our copy of the paper's text says about Figures 7 to 15 only that 7 shows the top block of a strong
model, 8 to 13 bottom blocks and weak models, and 14 and 15 other data sets. The block, model and
data set here are our choice. configs/settings.py has all settings.
"""

from ml_collections import ConfigDict

from configs import analysis


def get_config(spec: str = "") -> ConfigDict:
    """Returns the analysis of the figure, or of its mini version."""
    return analysis.make_neurons(15, "augreg", -1, "pets", spec=spec)
