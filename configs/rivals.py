"""What a reviewer would ask for beside ReMem: other ways to tune the teacher, nearest rivals.

    python -m remem_jax.main --config=configs/rivals.py:caltech101 --workdir=studies/rivals

Early stopping is no row: all teachers are stopped at several steps, and the best of them counts.
configs/study.py has the settings of a study, and how to add workers.
"""

from ml_collections import ConfigDict

from configs import remem, study

ROWS = {
    **study.rows("scratch", "finetune"),
    "smoothing": study.row("Label smoothing 0.1", "finetune", teacher={"label_smoothing": 0.1}),
    # Its authors take 0.1 to 0.35 [source].
    "mcmi": study.row("MCMI, weight 0.25", "finetune", teacher={"mcmi": 0.25}),
    "flattened": study.row("Logits halved", "finetune", student={"flatten": 2.0}),
    **study.rows("reweight", "sam", "remem"),
    **study.rows("finetune", "remem", prefix="lora_", group="LoRA", teacher={"tuning": "lora"}),
    **study.rows(
        "finetune",
        "remem",
        prefix="adapter_",
        group="Adapters",
        teacher={"tuning": "adapter_houlsby"},
    ),
    **study.rows(
        "finetune", prefix="probe_", group="Linear probe", teacher={"tuning": "linear_probe"}
    ),
}


def get_config(spec: str = "cifar100") -> ConfigDict:
    """Returns the study for a data set; `spec` is that of configs/remem.py."""
    name = spec.partition(",")[0]
    columns = {name: study.column(study.TITLES.get(name, name))}
    return study.make(f"Rivals of ReMem: {name}", ROWS, columns, base=remem.get_config(spec))
