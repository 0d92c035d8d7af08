"""Figure 6: students of teachers whose top MLPs are pruned, on several data sets.

    python -m remem_jax.main --config=configs/figures/figure6.py --workdir=figures/figure6
    python -m remem_jax.main --config=configs/figures/figure6.py:mini --workdir=figures/figure6_mini

Our copy of the paper's text does not name the data sets; these are our choice. configs/settings.py
has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the figure, or of its mini version."""
    rows = study.pruned("mlp", (0, 2, 4, 8, 12) if spec else range(13))
    columns = {}
    for name in ("caltech101", "cifar100", "flowers102"):
        columns |= study.strengths(name, "augreg", spec=spec)
    return study.make_figure(6, "Students of pruned teachers", rows, columns, spec=spec)
