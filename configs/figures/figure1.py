"""Figure 1: the information plane of teachers of three pretrainings.

    python -m remem_jax.main --config=configs/figures/figure1.py --workdir=figures/figure1
    python -m remem_jax.main --config=configs/figures/figure1.py:mini --workdir=figures/figure1_mini

Each teacher is fine-tuned, and its checkpoints on the way are points of the plane too. The data set
is lost from the paper's text that we have; CIFAR-100 is our choice. configs/study.py has the
settings, and how to add workers.
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
