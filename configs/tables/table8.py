"""Table 8: patient distillation (function matching) and DIST.

    python -m remem_jax.main --config=configs/tables/table8.py --workdir=studies/table8
    python -m remem_jax.main --config=configs/tables/table8.py:mini --workdir=studies/table8_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import remem, study

ROWS = {
    **study.rows(
        "finetune",
        "remem",
        prefix="patient_",
        group="Patient",
        student=remem.LOSSES["patient"],
    ),
    **study.rows("finetune", "remem", prefix="dist_", group="DIST", student=remem.LOSSES["dist"]),
}
COLUMNS = study.datasets(study.SIX)


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    config = study.make_table(
        8,
        "Patient distillation and DIST",
        ROWS,
        COLUMNS,
        spec=spec,
        mini=("caltech101", "cifar100"),
    )
    if spec == "mini":
        for name in ("patient_finetune", "patient_remem"):
            config.rows[name].changes.student.steps = 3_000  # Three times as many as DIST has.
    return config
