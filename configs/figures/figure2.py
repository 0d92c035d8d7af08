"""Figure 2: the effect of SAM on the information plane, for three pretrainings.

    python -m remem_jax.main --config=configs/figures/figure2.py --workdir=figures/figure2
    python -m remem_jax.main --config=configs/figures/figure2.py:mini --workdir=figures/figure2_mini

The paper names Caltech-101 as a data set on which SAM changes little; CIFAR-100, the other data
set, is our choice. configs/settings.py has all settings; configs/study.py explains how to add
workers.
"""

from ml_collections import ConfigDict

from configs import study


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the figure, or of its mini version."""
    return study.make_figure(
        2,
        "What SAM does on the information plane",
        study.rows("finetune", "sam"),
        study.strengths("cifar100", spec=spec) | study.strengths("caltech101", spec=spec),
        spec=spec,
    )
