"""A comparison of ReMem with other ways to make a teacher.

    python -m remem_jax.main --config=configs/rivals.py:caltech101 --workdir=studies/rivals

docs/teachers.md explains the rivals, docs/students.md the losses, configs/study.py how to add
workers. configs/settings.py has all settings.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import remem, study

# Learning rate of a head on frozen features; docs/teachers.md has what others do. [choice]
PROBE_RATE = 0.02


def rows() -> dict[str, Any]:
    """Returns the rows of the table."""
    return {
        **study.rows("scratch", "finetune"),
        "probed": study.row("Linear probe", "finetune", teacher={"tuning": "linear_probe"}),
        # A fifth of the steps for the head, as in the first epochs of Kumar et al. [choice]
        "probed_finetuned": study.row(
            "Linear probe, then fine-tuning",
            "finetune",
            parts={"probe_steps": 0.2},
            teacher={"probe_learning_rate": PROBE_RATE},
        ),
        # Its schedule ends early, too, as in Cho and Hariharan 2019,
        # https://arxiv.org/abs/1910.01348. Other rows may also select an early checkpoint, whose
        # learning rate is still high. [choice]
        "early": study.row(
            "Early stopped, at a tenth of the steps",
            "finetune",
            parts={"steps": 0.1, "warmup_steps": 0.05},
        ),
        "smoothing": study.row("Label smoothing 0.1", "finetune", teacher={"label_smoothing": 0.1}),
        # The authors of MCMI use 0.1 to 0.35. [source]
        "mcmi": study.row("MCMI, weight 0.25", "finetune", teacher={"mcmi": 0.25}),
        "lora": study.row("LoRA", "finetune", teacher={"tuning": "lora"}),
        "calibrated": study.row("Calibrated", "finetune", student={"flatten": "calibrated"}),
        "flattened": study.row("Logits halved", "finetune", student={"flatten": 2.0}),
        "standardised": study.row(
            "KD of standardised logits", "finetune", student={"losses": ("kd_standardised",)}
        ),
        # Weight and temperature as in its authors' code. [source]
        "decoupled": study.row(
            "Decoupled KD",
            "finetune",
            student={"losses": ("kd_decoupled",), "weights": (1.0,), "temperatures": (4.0,)},
        ),
        **study.rows("reweight", "sam", "remem"),
        "lora_remem": study.row("LoRA and ReMem", "remem", teacher={"tuning": "lora"}),
        "adapter": study.row("Adapters", "finetune", teacher={"tuning": "adapter_houlsby"}),
        "adapter_remem": study.row(
            "Adapters and ReMem", "remem", teacher={"tuning": "adapter_houlsby"}
        ),
    }


def get_config(spec: str = "cifar100") -> ConfigDict:
    """Returns the study for a data set; `spec` is as in configs/remem.py."""
    name = spec.partition(",")[0]
    base = remem.get_config(spec)
    columns = {name: study.column(study.TITLES.get(name, name))}
    return study.make(f"Rivals of ReMem: {name}", rows(), columns, base=base)
