"""Estimates the cost of a ReMem run from a few steps: operations and seconds."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax.methods import METHODS
from remem_jax.train import flops
from remem_jax.workflow import context, memory_plan
from remem_jax.workflow.remem import finetune, student_grid, student_setup, teacher_training

_TIMED_STEPS = 2  # Timed steps, after one that compiles.


class Step(NamedTuple):
    """Cost of one step.

    Attributes:
        operations: Floating-point operations; see `flops.count`.
        seconds: Seconds on this device.
    """

    operations: float
    seconds: float

    def times(self, steps: int) -> "Step":
        """Returns the cost of several steps."""
        return Step(steps * self.operations, steps * self.seconds)


class Speed(NamedTuple):
    """Cost of the steps of a run.

    Attributes:
        teacher: Cost of a teacher step; None without a teacher.
        teacher_outputs: Cost of augmenting a batch for the students, and of the teacher's outputs
            for it if there is a teacher.
        student: Cost of a step of one student, the mean over the grid.
    """

    teacher: Step | None
    teacher_outputs: Step
    student: Step


class Cost(NamedTuple):
    """Cost of a run.

    Attributes:
        teacher_steps: Steps of its teachers.
        student_steps: Steps of all students together.
        students: Number of students.
        operations: Floating-point operations of training, without evaluation and data.
        seconds: Seconds of training, without evaluation and data.
    """

    teacher_steps: int
    student_steps: int
    students: int
    operations: float
    seconds: float


def of_run(config: ConfigDict, speed: Speed, *, with_teacher: bool = True) -> Cost:
    """Returns the cost of a run with one method.

    Args:
        config: All settings.
        speed: The cost of its steps.
        with_teacher: Whether it trains its teacher, which another trial may have trained.
    """
    (method,) = config.methods
    has_teacher = METHODS[method].has_teacher
    teachers = len(config.teacher.steps) if has_teacher else 1
    students = teachers * len(student_grid.points(config.student, method))
    teacher_steps = config.teacher.steps[-1] if has_teacher and with_teacher else 0
    student_steps = students * config.student.steps
    if config.data.refit:  # The last teacher at most, and one setting of students.
        refitted = config.teacher.steps[-1] if has_teacher else 0
        teacher_steps, teachers = teacher_steps + refitted, teachers + 1
        student_steps += len(config.student.seeds) * config.student.steps
    costs = [
        speed.teacher.times(teacher_steps) if speed.teacher else Step(0, 0),
        speed.teacher_outputs.times(teachers * config.student.steps),
        speed.student.times(student_steps),
    ]
    return Cost(
        teacher_steps,
        student_steps,
        students,
        math.fsum(cost.operations for cost in costs),
        math.fsum(cost.seconds for cost in costs),
    )


def measure(run: context.Run) -> Speed:
    """Measures some steps of a run with one method, without keeping them."""
    (method,) = run.config.methods
    if not METHODS[method].has_teacher:
        grid = student_grid.label_grid(run, method)
        return _of_students(run, student_setup.make(run, None), grid, {}, None)
    pretrained = finetune.read_pretrained(run)
    setup = student_setup.make(run, pretrained)
    settings = teacher_training.settings_of(run.config, method)
    start = teacher_training.start(run, pretrained, method)
    plan = memory_plan.planned(run, teacher_training.planned_step(run, method, start))
    start = start._replace(plan=plan)
    training = teacher_training.make_training(run, settings, start)
    state = training.first_state()
    batch = training_batch(run, settings.batch_size)
    operations = teacher_training.operations(run, settings, start, training)(state, batch)

    def step(state: Any) -> Any:
        return training.step(state, batch, *teacher_training.inputs(run, start))[0]

    teacher = Step(operations, _seconds(step, state))
    variables = run.place(start.teacher(start.trainable))
    targets = student_setup.make_targets(run, teacher_training.teacher_apply(run, start))
    grid = student_grid.make_grid(run, f"students/{method}", targets, variables)
    return _of_students(run, setup, grid, variables, teacher)


def _of_students(
    run: context.Run,
    setup: student_setup.StudentSetup,
    grid: student_grid.StudentGrid,
    variables: Any,
    teacher: Step | None,
) -> Speed:
    batch = training_batch(run, run.config.student.batch_size)
    number = np.int32(0)

    def teacher_pass(_: Any) -> Any:
        augmented = setup.augment(number, batch)
        return augmented, grid.compute_targets and grid.compute_targets(variables, augmented.images)

    augmented, targets = teacher_pass(None)
    teacher_outputs = Step(flops.count(teacher_pass, None), _seconds(teacher_pass, None))
    costs = {}
    for point in grid.one_per_loss:
        step, state = setup.step(point), setup.first_state(point)
        operations = flops.count(step, state, *augmented, targets, point.hyperparameters)

        def train_step(state: Any, step: Any = step, point: student_grid.GridPoint = point) -> Any:
            return step(state, *augmented, targets, point.hyperparameters)[0]

        costs[point.loss] = Step(operations, _seconds(train_step, state))
    point_costs = [costs[point.loss] for point in grid.points]
    student = Step(
        statistics.fmean(cost.operations for cost in point_costs),
        statistics.fmean(cost.seconds for cost in point_costs),
    )
    return Speed(teacher, teacher_outputs, student)


def training_batch(run: context.Run, batch_size: int) -> Any:
    """Returns a training batch."""
    batches = run.loader.train(batch_size, 0, stage="teacher")
    try:
        return next(batches)
    finally:
        batches.close()


def _seconds(step: Callable[[Any], Any], state: Any) -> float:
    """Measures the seconds of a step that is called with its own result."""
    state = jax.block_until_ready(step(state))  # Compiles.
    started = time.monotonic()
    for _ in range(_TIMED_STEPS):
        state = step(state)
    jax.block_until_ready(state)
    return (time.monotonic() - started) / _TIMED_STEPS
