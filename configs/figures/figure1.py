"""Figure 1: the information plane of teachers of three pretrainings.

    python -m remem_jax.main --config=configs/figures/figure1.py --workdir=figures/figure1
    python -m remem_jax.main --config=configs/figures/figure1.py:mini --workdir=figures/figure1_mini

Each teacher is fine-tuned; its intermediate checkpoints are points of the plane, too. Our copy of
the paper's text does not name the data set; CIFAR-100 is our choice. configs/settings.py has all
settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the figure, or of its mini version."""
    return study.make_figure(
        1,
        "The information plane of pretrainings",
        study.rows("finetune"),
        study.strengths("cifar100", spec=spec),
        spec=spec,
    )
