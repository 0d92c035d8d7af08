"""Figure 4: error and information of teachers whose top blocks are pruned.

    python -m remem_jax.main --config=configs/figures/figure4.py --workdir=figures/figure4
    python -m remem_jax.main --config=configs/figures/figure4.py:mini --workdir=figures/figure4_mini

Of a pruned block only the residual connection remains. Our copy of the paper's text does not name
the data set; CIFAR-100 is our choice. configs/settings.py has all settings; configs/study.py
explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the figure, or of its mini version."""
    counts = (0, 2, 4, 8, 12) if spec else range(13)
    rows = study.pruned("mlp", counts) | study.pruned("attention", counts)
    columns = study.strengths("cifar100", "i1k", "augreg", spec=spec)
    config = study.make_figure(4, "Blocks pruned from the top", rows, columns, spec=spec)
    # One student for each teacher, because the figure shows only teachers.
    config.base.student.learning_rates = (0.1,)
    config.base.student.temperatures = (4.0,)
    config.base.student.weights = (0.5,)
    return config
