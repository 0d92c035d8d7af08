"""Table 1: students from scratch, of a fine-tuned teacher and of ReMem, on sixteen data sets.

    python -m remem_jax.main --config=configs/tables/table1.py --workdir=studies/table1
    python -m remem_jax.main --config=configs/tables/table1.py:mini --workdir=studies/table1_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study

ROWS = study.rows("scratch", "finetune", "remem")
COLUMNS = study.datasets(tuple(study.TITLES))


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    return study.make_table(
        1,
        "ReMem on sixteen data sets",
        ROWS,
        COLUMNS,
        spec=spec,
        mini=("caltech101", "cifar100", "flowers102", "eurosat"),
    )
