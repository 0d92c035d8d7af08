"""Table 3: students of other architectures.

The paper does not name the size of its EfficientNetV2; S is our choice.

    python -m remem_jax.main --config=configs/tables/table3.py --workdir=studies/table3
    python -m remem_jax.main --config=configs/tables/table3.py:mini --workdir=studies/table3_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study

ROWS = {
    **study.rows(
        "finetune",
        "remem",
        prefix="mobilenet_v2_",
        group="MobileNetV2",
        student={"model": "mobilenet_v2"},
    ),
    **study.rows(
        "finetune",
        "remem",
        prefix="efficientnet_v2_",
        group="EfficientNetV2",
        student={"model": "efficientnet_v2_s"},
    ),
}
COLUMNS = study.datasets(study.SIX)


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    return study.make_table(
        3,
        "Efficient students",
        ROWS,
        COLUMNS,
        spec=spec,
        mini=("caltech101", "cifar100"),
    )
