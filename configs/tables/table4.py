"""Table 4: teachers of three pretrainings.

Our copy of the paper's text does not name the data set; Food-101 is our choice. So is the teacher
pretrained on ImageNet-1k; remem_jax/weights/catalog.py gives the reasons.

    python -m remem_jax.main --config=configs/tables/table4.py --workdir=studies/table4
    python -m remem_jax.main --config=configs/tables/table4.py:mini --workdir=studies/table4_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study
from remem_jax.weights import catalog

ROWS = study.rows("finetune", "remem")
COLUMNS = {
    name: study.column(title, teacher={"variant": "B/16", "init": catalog.TABLE_4[title]})
    for name, title in (
        ("i1k", "ImageNet-1k"),
        ("i21k", "ImageNet-21K"),
        ("augreg", "ImageNet-21k (augreg)"),
    )
}


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    config = study.make_table(
        4,
        "Teachers of three pretrainings",
        ROWS,
        COLUMNS,
        dataset="food101",
        spec=spec,
        mini=("i1k", "augreg"),  # No other ViT-Ti/16 is published.
    )
    if spec == "mini":
        for name, init in (("i1k", "augreg-i1k:Ti/16"), ("augreg", "augreg:Ti/16")):
            config.columns[name].changes.teacher.update({"variant": "Ti/16", "init": init})
    return config
