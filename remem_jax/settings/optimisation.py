"""Checks the settings of optimisers, learning rates, dropout and averaging."""

from ml_collections import ConfigDict

from remem_jax import checks, models, optim


def check_schedule(prefix: str, settings: ConfigDict, steps: int) -> None:
    """Raises `SettingError` for the first of the settings of a schedule that cannot be used."""
    checks.at_least(f"{prefix}.batch_size", settings.batch_size, 1)
    checks.within(f"{prefix}.warmup_steps", settings.warmup_steps, 0, steps - 1)
    checks.at_least(f"{prefix}.weight_decay", settings.weight_decay, 0)
    if prefix == "config.student":
        checks.at_least("config.student.clip_norm", settings.clip_norm, 0)
    else:
        checks.above(f"{prefix}.clip_norm", settings.clip_norm, 0)


def check_teacher(teacher: ConfigDict) -> None:
    """Raises `SettingError` for the first setting of a teacher's optimisation."""
    checks.within("config.teacher.probe_steps", teacher.probe_steps, 0, teacher.steps[-1] - 1)
    checks.above("config.teacher.probe_learning_rate", teacher.probe_learning_rate, 0)
    check_schedule("config.teacher", teacher, teacher.steps[-1] - teacher.probe_steps)
    _check("config.teacher", teacher)


def check_student(student: ConfigDict) -> None:
    """Raises `SettingError` for the first setting of a student's optimisation."""
    check_schedule("config.student", student, student.steps)
    _check("config.student", student)
    checks.within("config.student.label_smoothing", student.label_smoothing, 0, 1)
    checks.within("config.student.dropout", student.dropout, 0, 0.99)
    for name in ("dropout", "drop_path"):
        checks.require(
            not student[name] or models.STUDENTS[student.model].takes(name),
            f"config.student.{name} is {student[name]}, but the student {student.model} has no "
            f"such option: set config.student.{name} to 0, or config.student.model to another one.",
        )


def _check(prefix: str, settings: ConfigDict) -> None:
    checks.one_of(f"{prefix}.optimizer", settings.optimizer, optim.OPTIMIZERS)
    checks.inside(f"{prefix}.momentum", settings.momentum, -1e-9, 1)
    checks.one_of(f"{prefix}.nesterov", settings.nesterov, (True, False))
    for beta in settings.betas:
        checks.within(f"{prefix}.betas", beta, 0, 0.99999)
    checks.above(f"{prefix}.epsilon", settings.epsilon, 0)
    checks.above(f"{prefix}.layer_decay", settings.layer_decay, 0)
    checks.within(f"{prefix}.layer_decay", settings.layer_decay, 0, 1)
    checks.at_least(f"{prefix}.body_rate", settings.body_rate, 0)
    checks.within(f"{prefix}.drop_path", settings.drop_path, 0, 0.99)
    checks.inside(f"{prefix}.ema", settings.ema, -1e-9, 1)
    checks.one_of(f"{prefix}.ema_warmup", settings.ema_warmup, (True, False))
