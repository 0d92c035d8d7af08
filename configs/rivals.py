"""A comparison of ReMem with other ways to fine-tune the teacher.

    python -m remem_jax.main --config=configs/rivals.py:caltech101 --workdir=studies/rivals

Early stopping is not a row: every teacher is saved at several steps, and the best one is selected.
configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from ml_collections import ConfigDict

from configs import remem, study

ROWS = {
    **study.rows("scratch", "finetune"),
    "smoothing": study.row("Label smoothing 0.1", "finetune", teacher={"label_smoothing": 0.1}),
    # The authors of MCMI use 0.1 to 0.35. [source]
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
    """Returns the study for a data set; `spec` is as in configs/remem.py."""
    name = spec.partition(",")[0]
    columns = {name: study.column(study.TITLES.get(name, name))}
    return study.make(f"Rivals of ReMem: {name}", ROWS, columns, base=remem.get_config(spec))
