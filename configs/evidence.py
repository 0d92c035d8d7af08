"""The study that decides when ReMem helps: for which students, against which rivals.

    python -m remem_jax.main --config=configs/evidence.py:caltech101 --workdir=studies/evidence
    python -m remem_jax.main --config=configs/evidence.py:caltech101+flowers102,small \
        --workdir=studies/evidence_small --config.base.teacher.init=weights/Ti_16.npz

Rows are ways to make the teacher of a student, or none; columns are students on data sets, which
the first word names, joined by "+". "small" has images of 96 pixels, a ViT-Ti/16 and few steps, for
a machine without an accelerator; any other option is one of configs/remem.py. The grid is searched
with the first seed alone (config.search.seeds). docs/evidence.md has what it has measured so far.
configs/settings.py has all settings; configs/study.py explains how to add workers.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import remem, rivals, study

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("ResNet-18 from random weights", {"model": "resnet18", "init": ""}),
    "lite0": (
        "EfficientNet-Lite0 from ImageNet",
        {"model": "efficientnet_lite0", "init": "imagenet"},
    ),
    "vit_tiny": (
        "ViT-Ti/16 from ImageNet",
        {
            "model": "vit_tiny_patch16",
            "init": "imagenet",
            "clip_norm": 1.0,
            # As its teachers: AdamW with the rate of the others would undo the pretraining.
            "optimizer": "sgd",
            "weight_decay": 0.0,
            "pretrained_learning_rates": (0.01,),
        },
    ),
}
# An ascent of SAM needs two passes, and re-weighted blocks recover slowly: all teachers have the
# same number of steps, as in the paper.
ROWS = {
    "alone": study.row("No teacher", "alone"),
    **study.rows("finetune"),
    # Marrie et al. 2024, https://arxiv.org/abs/2402.11305, found such teachers better. [choice]
    "probed": study.row(
        "Linear probe",
        "finetune",
        teacher={"tuning": "linear_probe", "learning_rate": rivals.PROBE_RATE},
    ),
    "calibrated": study.row(
        "Fine-tuning, calibrated", "finetune", student={"flatten": "calibrated"}
    ),
    "standardised": study.row(
        "Fine-tuning, standardised KD",
        "finetune",
        student={"losses": ("kd_standardised",)},
    ),
    # The teacher's share in the loss above, whose logits are not standardised here.
    "weighted": study.row("Fine-tuning, weight 90/91", "finetune", student={"weights": (90 / 91,)}),
    **study.rows("reweight", "sam", "remem"),
    "remem_calibrated": study.row("ReMem, calibrated", "remem", student={"flatten": "calibrated"}),
    "remem_standardised": study.row(
        "ReMem, standardised KD", "remem", student={"losses": ("kd_standardised",)}
    ),
}

CLAIMS = {  # The paper's claims, and the rivals': a title, a row that should be better, a baseline.
    "teacher": ("A fine-tuned teacher helps the student", "finetune", "alone"),
    "remem": ("ReMem's teacher helps the student more than a fine-tuned one", "remem", "finetune"),
    "sam": ("SAM alone helps more than plain fine-tuning", "sam", "finetune"),
    "reweight": ("Re-weighting alone helps more than plain fine-tuning", "reweight", "finetune"),
    "both": ("ReMem helps more than SAM alone", "remem", "sam"),
    "softer": ("ReMem helps more than calibrating the fine-tuned teacher", "remem", "calibrated"),
    "scale": (
        "ReMem helps more than standardising the fine-tuned teacher's logits",
        "remem",
        "standardised",
    ),
    "calibrated": (
        "With calibrated teachers too, ReMem's helps more than a fine-tuned one",
        "remem_calibrated",
        "calibrated",
    ),
    "added": (
        "With standardised logits too, ReMem's teacher helps more than a fine-tuned one",
        "remem_standardised",
        "standardised",
    ),
    "weight": (
        "Standardised logits help more than the teacher's share in their loss alone",
        "standardised",
        "weighted",
    ),
    "probed": ("ReMem helps more than a linear probe", "remem", "probed"),
}


def get_config(spec: str = "caltech101") -> ConfigDict:
    """Returns the study for some data sets.

    Args:
        spec: Names of data sets, joined by "+"; then options of configs/remem.py, and "small".
    """
    names, *options = spec.split(",")
    datasets = names.split("+")
    is_small = "small" in options
    others = [option for option in options if option != "small"]
    base = remem.get_config(",".join([datasets[0], *(["variant=Ti/16"] * is_small), *others]))
    _set_students(base)
    if is_small:
        _shrink(base)
    columns = {
        f"{dataset}_{student}": study.column(
            f"{study.TITLES.get(dataset, dataset)}: {title}",
            data={"name": dataset},
            student=settings,
        )
        for dataset in datasets
        for student, (title, settings) in STUDENTS.items()
    }
    config = study.make("Evidence: when ReMem helps", ROWS, columns, base=base)
    config.name = "evidence_small" if is_small else "evidence"
    config.seeds = (0, 1, 2)
    config.baseline = "finetune"
    config.claims = ConfigDict(
        {
            name: {"title": title, "row": row, "baseline": baseline}
            for name, (title, row, baseline) in CLAIMS.items()
        }
    )
    config.grid.learning_rate = ()
    config.grid.rho = (0.05, 0.1, 0.2)
    config.search.seeds = (0,)
    config.search.near = ConfigDict({"rho": 0.1, "mlp_weight": 0.9})
    return config


def _set_students(base: ConfigDict) -> None:
    """Sets one student for each teacher, so that teachers are compared and not grids."""
    base.student.optimizer, base.student.weight_decay = "adamw", 0.05
    base.student.temperatures, base.student.weights = (2.0,), (0.9,)
    base.student.learning_rates = (0.001,)
    base.student.pretrained_learning_rates = (0.001,)
    base.student.evaluations = 1
    base.student.store_outputs = True
    base.teacher.steps = base.teacher.steps[-1:]
    base.information.seeds = (0,)
    base.flatness.radius = 0.05


def _shrink(base: ConfigDict) -> None:
    """Sets sizes at which a core needs about half an hour for a teacher and its student."""
    base.data.image_size = base.data.stored_size = 96
    base.data.crop_area = (0.5, 1.0)
    base.teacher.steps, base.teacher.warmup_steps = (400,), 40
    base.teacher.batch_size = base.student.batch_size = 32
    base.teacher.learning_rate = 0.02
    # With 600 steps, a student without a teacher is two points below its plateau: docs/evidence.md.
    base.student.steps, base.student.warmup_steps = 1200, 60
    base.information.steps, base.information.batch_size = 300, 32
    base.information.evaluations = 3
    base.information.info_nce.measured = False
    base.log_every, base.save_every = 50, 200
