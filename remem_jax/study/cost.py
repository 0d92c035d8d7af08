"""What a study costs, said before it begins and kept beside it."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import settings, workflow
from remem_jax.checks import SettingError
from remem_jax.methods import METHODS
from remem_jax.storage import results
from remem_jax.storage.identity import described
from remem_jax.study.space import Trial
from remem_jax.workflow.remem import cost

_SPEEDS = "speeds.json"


class Total(NamedTuple):
    """What trials cost together.

    Attributes:
        trials: How many.
        teacher_steps: Of all teachers.
        student_steps: Of all students.
        students: How many.
        operations: Floating-point operations of training.
        hours: Of training, on this device alone; reading data, evaluation and compiling come on
            top.
    """

    trials: int
    teacher_steps: int
    student_steps: int
    students: int
    operations: float
    hours: float


def of_trials(planned: Sequence[Trial], directory: pathlib.Path) -> Total:
    """What trials cost, by the speed of this device, which is measured once for each kind of them.

    A kind is what steps of one cost have in common; of its data sets, the first is measured. What
    was measured is kept in the folder.
    """
    path = directory / _SPEEDS
    known = results.read_for_all(path) or {}
    costs = []
    for trial in planned:
        kind = results.fingerprint({"run": _kind(trial.config), "device": _device()})
        if kind not in known:
            logging.info("Measuring what a step takes: %s, %s.", trial.row, trial.column)
            known[kind] = _plain(workflow.measure_speed(trial.config))
            results.write_for_all(path, known)
        costs.append(cost.of_run(trial.config, _speed(known[kind])))
    return Total(
        len(planned),
        sum(one.teacher_steps for one in costs),
        sum(one.student_steps for one in costs),
        sum(one.students for one in costs),
        sum(one.operations for one in costs),
        sum(one.seconds for one in costs) / 3600,
    )


def show_plans(planned: Sequence[Trial]) -> None:
    """Says how trials fit into this device's memory: of each kind and data set, the first.

    Raises:
        SettingError: If one does not.
    """
    shown = set()
    for trial in planned:
        kind = results.fingerprint({"run": _kind(trial.config), "data": trial.config.data.name})
        if kind in shown:
            continue
        shown.add(kind)
        logging.info("What %s, %s, takes of the device's memory:", trial.row, trial.column)
        try:
            workflow.show_plan(trial.config)
        except SettingError as error:
            raise SettingError(f"{trial.row}, {trial.column}: {error}") from error


def _kind(config: ConfigDict) -> dict[str, Any]:
    """The settings that the cost of a step depends on."""
    plain = described(settings.plain(config))
    teacher, student = plain["teacher"], plain["student"]
    (method,) = plain["methods"]
    if not METHODS[method].has_teacher:
        teacher = {}
    steps = ("steps", "learning_rate", "warmup_steps", "momentum", "weight_decay", "clip_norm")
    weights = ("mlp_weight", "attention_weight", "label_smoothing")
    teacher = {name: value for name, value in teacher.items() if name not in steps + weights}
    teacher["rho"] = teacher.get("rho", 0) > 0
    names = ("model", "stem", "losses", "batch_size", "mixup", "hard_labels")
    return {
        "teacher": teacher,
        "student": {name: student[name] for name in names},
        "image_size": plain["data"]["image_size"],
        "compute_dtype": plain["compute_dtype"],
        # They change no result, and a step's seconds.
        "memory": [config.teacher[name] for name in ("rematerialise", "accumulate")],
    }


def _device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _plain(speed: cost.Speed) -> dict[str, Any]:
    return {name: step and step._asdict() for name, step in speed._asdict().items()}


def _speed(plain: dict[str, Any]) -> cost.Speed:
    return cost.Speed(**{name: step and cost.Step(**step) for name, step in plain.items()})
