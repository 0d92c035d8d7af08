"""Table 2: teachers of four sizes.

Our copy of the paper's text does not name the data set; CIFAR-100 is our choice.

    python -m remem_jax.main --config=configs/tables/table2.py --workdir=studies/table2
    python -m remem_jax.main --config=configs/tables/table2.py:mini --workdir=studies/table2_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study

ROWS = study.rows("finetune", "remem")
COLUMNS = {
    name: study.column(f"ViT-{size}", teacher={"variant": variant, "init": f"augreg:{variant}"})
    for name, size, variant in (
        ("ti16", "Tiny", "Ti/16"),
        ("s16", "Small", "S/16"),
        ("b16", "Base", "B/16"),
        ("l16", "Large", "L/16"),
    )
}


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    return study.make_table(
        2,
        "Teachers of four sizes",
        ROWS,
        COLUMNS,
        spec=spec,
        mini=("ti16", "s16", "b16", "l16"),
    )
