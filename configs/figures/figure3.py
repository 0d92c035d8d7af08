"""Figure 3: the information plane for several radii of SAM.

    python -m remem_jax.main --config=configs/figures/figure3.py --workdir=figures/figure3
    python -m remem_jax.main --config=configs/figures/figure3.py:mini --workdir=figures/figure3_mini

Our copy of the paper's text does not list the radii. These are the radii of its Table 6, with 0 and
some values in between. configs/settings.py has all settings; configs/study.py explains how to add
workers.
"""

from ml_collections import ConfigDict

from configs import study

RADII = (0.0, 0.005, 0.02, 0.05, 0.2, 0.5)


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the figure, or of its mini version."""
    rows = {
        f"rho_{rho:g}".replace(".", "_"): study.row(f"rho = {rho:g}", "sam", teacher={"rho": rho})
        for rho in (RADII[::2] if spec else RADII)
    }
    columns = study.strengths("cifar100", "augreg", spec=spec)
    return study.make_figure(3, "The radius of SAM", rows, columns, spec=spec)
