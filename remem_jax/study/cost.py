"""Estimates the cost of a study before it starts; the measured speeds are kept in its folder."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import display, settings, workflow
from remem_jax.checks import SettingError
from remem_jax.methods import METHODS
from remem_jax.storage import results
from remem_jax.storage.identity import described
from remem_jax.study import teachers
from remem_jax.study.space import Trial
from remem_jax.workflow.remem import cost

_SPEEDS = "speeds.json"
_STORED_NAMES = {"teacher_outputs": "answer"}  # Fields that have another name in `_SPEEDS`.


class Total(NamedTuple):
    """The cost of all trials.

    Attributes:
        trials: Number of trials.
        teacher_steps: Training steps of all teachers.
        student_steps: Training steps of all students.
        students: Number of students.
        operations: Floating-point operations of training.
        hours: Hours of training on this device alone, without reading data, evaluation and
            compilation.
    """

    trials: int
    teacher_steps: int
    student_steps: int
    students: int
    operations: float
    hours: float


def of_trials(planned: Sequence[Trial], directory: pathlib.Path) -> Total:
    """Estimates the cost of trials from the speed of a step, measured once for each kind of trial.

    Steps of one kind cost the same (`_kind`); the first data set of a kind is measured. The speeds
    are kept in the folder of the study. A teacher that trials share is counted once.
    """
    path = directory / _SPEEDS
    speeds = results.read_for_all(path) or {}
    costs, trained = [], set()
    for trial in planned:
        kind = results.fingerprint({"run": _kind(trial.config), "device": _device()})
        if kind not in speeds:
            logging.info("Measuring the speed of a step: %s, %s.", trial.row, trial.column)
            with display.stage(f"Speed of {trial.row}, {trial.column}", None):
                speeds[kind] = _to_json(workflow.measure_speed(trial.config))
            results.write_for_all(path, speeds)
        teacher = teachers.settings_key(trial.config)
        is_trained, speed = teacher in trained, _from_json(speeds[kind])
        costs.append(cost.of_run(trial.config, speed, with_teacher=not is_trained))
        trained.add(teacher)
    return Total(
        len(planned),
        sum(each.teacher_steps for each in costs),
        sum(each.student_steps for each in costs),
        sum(each.students for each in costs),
        sum(each.operations for each in costs),
        sum(each.seconds for each in costs) / 3600,
    )


def show_plans(planned: Sequence[Trial]) -> None:
    """Logs the memory of this device that trials need: the first of each kind and data set.

    Raises:
        SettingError: If one does not fit.
    """
    logged = set()
    for trial in planned:
        kind = results.fingerprint({"run": _kind(trial.config), "data": trial.config.data.name})
        if kind in logged:
            continue
        logged.add(kind)
        logging.info("Device memory of %s, %s:", trial.row, trial.column)
        try:
            workflow.show_plan(trial.config)
        except SettingError as error:
            raise SettingError(f"{trial.row}, {trial.column}: {error}") from error


def _kind(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that the cost of a step depends on."""
    plain = described(settings.plain(config))
    teacher, student = plain["teacher"], plain["student"]
    (method,) = plain["methods"]
    if not METHODS[method].has_teacher:
        teacher = {}
    free = (
        *("steps", "learning_rate", "warmup_steps", "momentum", "nesterov", "weight_decay"),
        *("clip_norm", "mlp_weight", "attention_weight", "label_smoothing"),
    )
    teacher = {name: value for name, value in teacher.items() if name not in free}
    teacher["rho"] = teacher.get("rho", 0) > 0
    names = ("model", "stem", "losses", "batch_size", "mixup", "cutmix", "hard_labels")
    return {
        "teacher": teacher,
        "student": {name: student[name] for name in names},
        "image_size": plain["data"]["image_size"],
        "augment": [plain["data"][name] for name in ("augment", "augment_operations")],
        "compute_dtype": plain["compute_dtype"],
        # `described` omits them because they change no result, but they change the speed.
        "memory": [config.teacher[name] for name in ("rematerialise", "accumulate")],
    }


def _device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _to_json(speed: cost.Speed) -> dict[str, Any]:
    return {
        _STORED_NAMES.get(name, name): step and step._asdict()
        for name, step in speed._asdict().items()
    }


def _from_json(content: dict[str, Any]) -> cost.Speed:
    names = {stored: name for name, stored in _STORED_NAMES.items()}
    steps = {names.get(name, name): step for name, step in content.items()}
    return cost.Speed(**{name: step and cost.Step(**step) for name, step in steps.items()})
