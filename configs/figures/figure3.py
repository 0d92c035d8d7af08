"""Figure 3: the information plane over the radius of SAM.

    python -m remem_jax.main --config=configs/figures/figure3.py --workdir=figures/figure3
    python -m remem_jax.main --config=configs/figures/figure3.py:mini --workdir=figures/figure3_mini

The radii are lost from the paper's text that we have: these are those of its Table 6, with 0 and
with some between. configs/study.py has the settings, and how to add workers.
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
