"""Table 10: re-weighting and SAM, each alone.

Our copy of the paper's text does not name the data set; its numbers fit SUN397 with TFDS's split.

    python -m remem_jax.main --config=configs/tables/table10.py --workdir=studies/table10
    python -m remem_jax.main --config=configs/tables/table10.py:mini --workdir=studies/table10_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study

ROWS = {
    **study.rows("finetune", "reweight", "sam"),
    "remem": study.row("Re-weighting and SAM (ReMem)", "remem"),
}
COLUMNS = study.datasets(("sun397_tfds",))


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    return study.make_table(
        10,
        "What re-weighting and SAM do alone",
        ROWS,
        COLUMNS,
        spec=spec,
        mini=("caltech101", "cifar100"),
    )
