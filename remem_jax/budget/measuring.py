"""Times a few steps of a run, to plan it."""

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax.budget import plan
from remem_jax.budget.plan import STUDENTS, TEACHER, Speeds, Stage
from remem_jax.methods import METHODS
from remem_jax.records import Outputs
from remem_jax.storage import logs
from remem_jax.workflow import context, memory_plan
from remem_jax.workflow.remem import cost, finetune, student_grid, student_setup, teacher_training

# Steps that are timed, and seconds: the first steps after a compilation vary.
_TIMED_STEPS, _TIMED_SECONDS = 3, 2.0
# Steps of a run, which also reads batches and logs, take this much longer: on two CPU cores 0.82 s
# instead of 0.75 of EfficientNet-Lite0 at 96 pixels, and 0.81 instead of 0.74 of ViT-Ti/16.
_IN_A_RUN = 1.09
_SAM = 2.0  # Passes of a step with SAM, in those of one without.
_FORWARD = 1 / 3  # Of a training step: the backward pass takes twice as long as the forward pass.
_REPORT_SECONDS = 25.0  # Latencies, plots and files, on two CPU cores.


def measure(
    run: context.Run, pretrained: finetune.Pretrained | None, setup: student_setup.StudentSetup
) -> Speeds:
    """Times a step of a student without a teacher, one of a teacher, and the teacher's outputs.

    Compiled programs are those of the run, which then takes them from memory or from the cache. A
    step with SAM, and one of a student with a teacher, are estimated from these, so that no program
    is compiled before it is known that it will be needed.
    """
    config = run.config
    batch = cost.training_batch(run, config.student.batch_size)
    augmented = setup.augment(np.int32(0), batch)
    _, augment = _timed(lambda _: setup.augment(np.int32(0), batch).images, None)
    teacher = _teacher(run, pretrained, augmented.images) if pretrained else _NO_TEACHER
    alone = [name for name in config.methods if not METHODS[name].has_teacher]
    point = student_grid.points(config.student, (alone or config.methods)[0])[0]
    targets = None if alone else teacher.targets

    def student_step(state: Any) -> Any:
        return setup.step(point)(state, *augmented, targets, point.hyperparameters)[0]

    begin, student = _timed(student_step, setup.first_state(point))
    examples = {name: len(split.rows) for name, split in run.dataset.splits.items()}
    evaluation, test = (
        examples[split] / config.student.batch_size * (_FORWARD * student + extra)
        for split, extra in (("validation", 0.0), ("test", teacher.outputs))
    )
    return Speeds(
        augment=augment,
        outputs=teacher.outputs,
        student=student,
        teacher=teacher.step,
        remem=_SAM * teacher.step,
        begin_teacher=_SAM * teacher.begin,
        begin_students=begin / 2,
        begin_distilling=begin + teacher.begin / 2,
        evaluation=evaluation,
        test=test + begin / 2,
        report=_REPORT_SECONDS,
    )


class _Teacher(NamedTuple):
    """Seconds of a teacher's first step, of another one, and of its outputs; and these outputs."""

    begin: float
    step: float
    outputs: float
    targets: Outputs | None


_NO_TEACHER = _Teacher(0.0, 0.0, 0.0, None)


def _teacher(run: context.Run, pretrained: finetune.Pretrained, images: jax.Array) -> _Teacher:
    settings: ConfigDict = teacher_training.settings_of(run.config, "finetune")
    start = teacher_training.start(run, pretrained, "finetune")
    plan = memory_plan.planned(run, teacher_training.planned_step(run, "finetune", start))
    start = start._replace(plan=plan)
    training = teacher_training.make_training(run, settings, start)
    batch = cost.training_batch(run, settings.batch_size)

    def step(state: Any) -> Any:
        return training.step(state, batch, *teacher_training.inputs(run, start))[0]

    begin, seconds = _timed(step, training.first_state())
    variables = run.place(start.teacher(start.trainable))
    compute = student_setup.make_targets(run, teacher_training.teacher_apply(run, start))
    _, outputs = _timed(lambda _: compute(variables, images), None)
    return _Teacher(begin, seconds, outputs, compute(variables, images))


def _timed(step: Callable[[Any], Any], state: Any) -> tuple[float, float]:
    """Returns the seconds of a first call, and those of a call after it in a run."""
    began = time.monotonic()
    state = jax.block_until_ready(step(state))
    first, began = time.monotonic() - began, time.monotonic()
    steps = 0
    while steps < _TIMED_STEPS or time.monotonic() - began < _TIMED_SECONDS:
        state = jax.block_until_ready(step(state))
        steps += 1
    return first, _IN_A_RUN * (time.monotonic() - began) / steps


def remeasured(
    stage: Stage, speeds: Speeds, directory: pathlib.Path, done: Sequence[Stage]
) -> Speeds:
    """Returns the speeds after a stage, from the times of its steps in the log.

    The first measurement of a kind of step replaces its estimate. A later one shows whether the
    machine has become slower or faster: everything then takes as much longer or shorter.

    Args:
        stage: The stage.
        speeds: The speeds that it was planned with.
        directory: Folder of the run.
        done: The stages before it.
    """
    times = [
        row["step_seconds"]
        for row in logs.read(directory)
        if (row["part"] == stage.name or row["part"].startswith(f"{stage.name}/step_"))
        and "step_seconds" in row
    ][1:]  # The first includes the compilation.
    if not times:
        return speeds
    seconds = statistics.median(times)
    factor = seconds / max(plan.step(stage, speeds), 1e-9)
    measured = set(map(_kind, done))
    if _kind(stage) in measured:
        return speeds.scaled(factor)
    if stage.kind == TEACHER:
        if METHODS[stage.method].rho != 0:
            return speeds._replace(remem=seconds)
        # Its outputs are a part of its step.
        return speeds._replace(
            teacher=seconds, remem=_SAM * seconds, outputs=factor * speeds.outputs
        )
    if METHODS[stage.method].has_teacher and (STUDENTS, False) in measured:
        without = plan.step(stage, speeds) - speeds.outputs
        return speeds._replace(outputs=max(seconds - without, 0.0))
    return speeds._replace(
        augment=factor * speeds.augment,
        student=factor * speeds.student,
        evaluation=factor * speeds.evaluation,
        test=factor * speeds.test,
    )


def _kind(stage: Stage) -> tuple[str, bool]:
    """Returns what the steps of a stage have in common with those of others."""
    method = METHODS[stage.method]
    return stage.kind, method.rho != 0 if stage.kind == TEACHER else method.has_teacher
