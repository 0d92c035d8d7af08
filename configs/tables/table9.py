"""Table 9: teachers fine-tuned with LoRA.

    python -m remem_jax.main --config=configs/tables/table9.py --workdir=studies/table9
    python -m remem_jax.main --config=configs/tables/table9.py:mini --workdir=studies/table9_mini

configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import study

LORA = {"tuning": "lora"}
ROWS = {
    "lora": study.row("LoRA", "finetune", teacher=LORA),
    "lora_remem": study.row("LoRA + ReMem", "remem", teacher=LORA),
}
COLUMNS = study.datasets(study.SIX)


def get_config(spec: str = "") -> ConfigDict:
    """Returns the study of the table, or of its mini version."""
    return study.make_table(
        9,
        "Teachers tuned by LoRA",
        ROWS,
        COLUMNS,
        spec=spec,
        mini=("caltech101", "cifar100"),
    )
