"""Trains the students of every teacher: one per grid point, in lockstep."""

import math
import pathlib
import statistics
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import mesh
from remem_jax.records import Batch, Variables
from remem_jax.storage import checkpoints, results
from remem_jax.train import flops, lockstep, loop
from remem_jax.train.state import TrainState
from remem_jax.workflow import context, stages, training
from remem_jax.workflow.remem import student_groups, targets
from remem_jax.workflow.remem.finetune import Teachers
from remem_jax.workflow.remem.student_grid import (
    GridPoint,
    StudentGrid,
    hyperparameters,
    label_grid,
    make_grid,
)
from remem_jax.workflow.remem.student_setup import StudentSetup, make_targets

# Fields of a student that identify its configuration; the seed is not one of them.
SETTING = ("teacher_step", "steps", "loss", "learning_rate", "temperature", "weight")

_BEST = "best"  # Folder of the students that a group keeps until one is selected.


def without_teacher(
    run: context.Run, setup: StudentSetup, method: str, stage: str = ""
) -> list[dict[str, Any]]:
    """Trains students without a teacher at all learning rates; see `_train_groups`."""
    grid = label_grid(run, method)
    grid = grid._replace(stage=stage or grid.stage)
    trained = _train_groups(run, setup, grid, grid.stage, targets.none)
    for group in trained:
        for student in group["students"]:
            student.update(loss=None, temperature=None, weight=None)
    return [{"teacher_step": None, **group} for group in trained]


def from_teachers(
    run: context.Run, setup: StudentSetup, teachers: Teachers, stage: str = ""
) -> list[dict[str, Any]]:
    """Trains the whole grid with each of the teachers; see `_train_groups`.

    Students learn from unlabelled images too, if there are any.
    """
    run = run.for_distillation()
    stage = stage or f"students/{teachers.method}"
    compute_targets = make_targets(run, teachers.apply)
    grid = make_grid(run, stage, compute_targets, teachers.shapes)
    groups = []
    for record in teachers.records:
        step = record["step"]
        open_targets = targets.of_teacher(run, compute_targets, teachers, step)
        trained = _train_groups(run, setup, grid, f"{stage}/step_{step}", open_targets)
        groups.extend({"teacher_step": step, **group} for group in trained)
    return groups


def refit(
    run: context.Run,
    setup: StudentSetup,
    method: str,
    teachers: Teachers | None,
    students: Sequence[int],
) -> list[dict[str, Any]]:
    """Trains some students of a method's grid on train and validation; see `_train_groups`.

    Args:
        run: The run, `for_refit`.
        setup: Its students.
        method: The method.
        teachers: Its one teacher, refitted; None for a method without a teacher.
        students: Numbers of the students in the grid.
    """
    stage = f"students/{method}/{stages.REFIT}"
    if teachers is None:
        grid, step, open_targets = label_grid(run, method), None, targets.none
    else:
        run, step = run.for_distillation(), teachers.records[-1]["step"]
        compute_targets = make_targets(run, teachers.apply)
        grid = make_grid(run, stage, compute_targets, teachers.shapes)
        open_targets = targets.of_teacher(run, compute_targets, teachers, step)
    grid = grid._replace(stage=stage, points=[grid.points[i] for i in students])
    trained = _train_groups(run, setup, grid, stage, open_targets)
    return [{"teacher_step": step, **group} for group in trained]


def kept(run: context.Run, setup: StudentSetup, stage: str, student: int) -> Variables:
    """Loads the variables of a student that has the best configuration of its group.

    Those of a refit are all there. They are there until `discard` is called.
    """
    shapes = run.shapes(jax.eval_shape(lambda: setup.first(0)))
    return checkpoints.load_tree(_best_path(run, stage, student), shapes)


def discard(run: context.Run, groups: Sequence[dict[str, Any]]) -> None:
    """Deletes the variables that `kept` loads, once the selected ones are saved and tested.

    Args:
        run: The run.
        groups: Return value of `from_teachers` or `without_teacher`.
    """
    if mesh.is_writer():
        for group in groups:
            checkpoints.remove(run.workdir / group["part"] / _BEST)


def _best_path(run: context.Run, stage: str, student: int) -> pathlib.Path:
    """Returns the folder of a saved student."""
    return run.workdir / stage / _BEST / f"student_{student}"


def _train_groups(
    run: context.Run,
    setup: StudentSetup,
    grid: StudentGrid,
    stage: str,
    open_targets: targets.OpenTargets,
) -> list[dict[str, Any]]:
    """Trains the students of one teacher in groups, or reads their results if they are finished.

    Returns:
        For each group "part", "seconds", and "students": steps, hyperparameters, validation metrics
        (None without validation images) and test metrics (with `config.choose_on_test`; None if
        diverged), whether each diverged;
        and "diverged": None, or if the whole group diverged, the "step" of the last one and the
        "reason". The variables of the best configuration's students are saved for `kept`.
    """
    result = results.read_for_all(run.workdir / stage / "result.json")
    if result:  # Trained as one group, even if fewer students fit on this device.
        return [result]
    size, students = student_groups.size(run, setup, grid), len(grid.points)
    if size == students:
        return [_train_group(run, setup, grid, stage, dict(enumerate(grid.points)), open_targets)]
    ranges = [range(i, min(i + size, students)) for i in range(0, students, size)]
    return [
        _train_group(
            run,
            setup,
            grid,
            f"{stage}/students_{numbers[0]}_to_{numbers[-1]}",
            {i: grid.points[i] for i in numbers},
            open_targets,
        )
        for numbers in ranges
    ]


def _train_group(
    run: context.Run,
    setup: StudentSetup,
    grid: StudentGrid,
    stage: str,
    points: dict[int, GridPoint],
    open_targets: targets.OpenTargets,
) -> dict[str, Any]:
    """Trains a group of students, or reads its results if it is finished; see `_train_groups`."""
    folder = run.workdir / stage
    finished = results.read_for_all(folder / "result.json")
    if finished:
        return finished
    measured: list[dict[str, float]] = []

    def milestone(at: int, states: lockstep.States) -> None:
        if run.dataset.selection:
            measured[:] = _measure(run, setup, states, job.lost)
            values = [metrics[run.dataset.metric] for metrics in measured]
            training.log_selection(run, stage, at, values)

    with open_targets() as get_targets:
        job = _job(run, setup, grid, points, get_targets)._replace(
            milestone=milestone, share=len(points) / len(grid.points)
        )
        students, seconds, diverged = _train(run, stage, job)
    if not (measured or diverged):  # Interrupted between the last checkpoint and the result.
        milestone(_steps_of(students), students)
    done = diverged["step"] if diverged else _steps_of(students)
    lost = range(len(points)) if diverged else job.lost
    records = _records(run, points, measured, lost, done)
    if run.config.choose_on_test and run.dataset.selection == "validation":
        _test(setup, students, records)
    if _finite(records):
        _keep_best(run, stage, dict(zip(points, students, strict=True)), records)
    result = {"part": stage, "seconds": seconds, "students": records, "diverged": diverged}
    result = results.finite(result)
    results.write_for_all(folder / "result.json", result)
    if mesh.is_writer():
        checkpoints.remove(folder / training.CHECKPOINTS)
    return result


def _measure(
    run: context.Run, setup: StudentSetup, states: lockstep.States, lost: Collection[int]
) -> list[dict[str, float]]:
    """Returns the metrics of each student on the split that selects; NaN for lost ones."""
    active = [state.variables for i, state in enumerate(states) if i not in lost]
    models = iter(setup.measure.all(active, run.dataset.selection).models)
    not_finite = _not_finite(run)
    return [not_finite if i in lost else next(models) for i in range(len(states))]


def _not_finite(run: context.Run) -> dict[str, float]:
    return dict.fromkeys((run.dataset.metric, "loss"), math.nan)


def _train(
    run: context.Run, stage: str, job: training.Job
) -> tuple[lockstep.States, float, dict[str, Any] | None]:
    """Trains a group; returns the students, the seconds, and the divergence.

    If all students diverged, returns no students; other groups continue.
    """
    try:
        students, seconds = training.train(run, stage, job)
    except loop.NonFiniteLossError as error:
        if not error.of_rate:
            raise
        logging.warning("%s", error)
        return (), error.seconds, {"step": error.step, "reason": str(error)}
    return students, seconds, None


def _steps_of(students: lockstep.States) -> int:
    """Returns the number of steps of a group; a student that was lost has done fewer."""
    return max(int(step) for step in jax.device_get([student.step for student in students]))


def _keep_best(
    run: context.Run, stage: str, students: dict[int, TrainState], records: Sequence[dict[str, Any]]
) -> None:
    """Saves the students of the best configuration, or all of a refit; others are discarded."""
    best = [record for group in _finite(records) for record in group]
    if run.dataset.selection:
        best = select(records, run.dataset.metric, split=run.dataset.selection)
    for record in best:
        number = record["student"]
        checkpoints.save_tree(_best_path(run, stage, number), dict(students[number].variables))


def _records(
    run: context.Run,
    points: dict[int, GridPoint],
    measured: Sequence[dict[str, float]],
    lost: Collection[int],
    steps: int,
) -> list[dict[str, Any]]:
    """Returns the record of each student; `measured` is empty if no split selects."""
    selection, records = run.dataset.selection, []
    for place, (i, point) in enumerate(points.items()):
        metrics = _not_finite(run) if place in lost else (measured or [{}] * len(points))[place]
        records.append(
            {
                "student": i,
                "loss": point.loss,
                "steps": steps,
                **hyperparameters(point, hard_labels=bool(run.config.student.hard_labels)),
                "validation": None,
                **({selection: metrics} if selection else {}),
                "diverged": not np.isfinite(metrics.get("loss", 0.0)),
            }
        )
    return records


def _test(
    setup: StudentSetup, students: lockstep.States, records: Sequence[dict[str, Any]]
) -> None:
    """Adds test metrics to the records; `students` is empty if all diverged."""
    variables = [
        student.variables
        for record, student in zip(records, students, strict=False)
        if not record["diverged"]
    ]
    measured = iter(setup.measure.all(variables, "test").models)
    for record in records:
        record["test"] = None if record["diverged"] else next(measured)


def _job(
    run: context.Run,
    setup: StudentSetup,
    grid: StudentGrid,
    points: dict[int, GridPoint],
    get_targets: lockstep.GetTargets,
) -> training.Job:
    """Returns the training of a group of students, without its evaluation."""
    settings, group = run.config.student, list(points.values())
    lost: set[int] = set()
    students = [(setup.step(point), point.hyperparameters) for point in group]
    milestones = np.linspace(0, settings.steps, settings.evaluations + 1)[1:]

    def operations(states: lockstep.States, batch: Batch) -> float:
        """Counts operations of finite students and the teacher, even if its outputs are stored."""
        number = jax.ShapeDtypeStruct((), "int32")
        augmented = run.batch_shapes(setup.augment, number, batch)
        outputs, teacher_operations = None, 0.0
        if grid.compute_targets:
            inputs = grid.shapes, augmented.images
            outputs = run.batch_shapes(grid.compute_targets, *inputs)
            teacher_operations = flops.count(grid.compute_targets, *inputs)
        trained = [
            (point, state)
            for i, (point, state) in enumerate(zip(group, states, strict=True))
            if i not in lost
        ]
        one_per_loss = {point.loss: (point, state) for point, state in trained}
        loss_operations = {
            loss: flops.count(setup.step(point), state, *augmented, outputs, point.hyperparameters)
            for loss, (point, state) in one_per_loss.items()
        }
        return teacher_operations + sum(loss_operations[point.loss] for point, _ in trained)

    return training.Job(
        tuple(setup.shapes[point.loss] for point in group),
        lambda: tuple(map(setup.first_state, group)),
        lambda first_step, rate, progress: lockstep.make_step(
            setup.augment,
            get_targets,
            students,
            first_step=first_step,
            lost=lost,
            rate=rate,
            progress=progress,
        ),
        operations,
        settings.batch_size,
        settings.steps,
        tuple(round(float(step)) for step in milestones),
        lambda step, states: None,
        "student",
        lost,
        settings.warmup_steps,
    )


def select(records: Sequence[dict[str, Any]], metric: str, *, split: str) -> list[dict[str, Any]]:
    """Returns the records of the configuration with the highest mean metric, one per seed.

    Ties are broken by the lower loss. Configurations that diverged with any seed are excluded.

    Args:
        records: Records of all students, with "teacher_step" if there are several teachers.
        metric: Name of the metric.
        split: Split that selects: "validation", or "test", which makes the result optimistic.

    Raises:
        NonFiniteLossError: If every configuration diverged.
    """
    finite = _finite(records)
    if not finite:
        raise loop.NonFiniteLossError(
            "Every student diverged; lower config.student.learning_rates (or "
            "pretrained_learning_rates), or set clip_norm, in another --workdir."
        )

    def rank(group: list[dict[str, Any]]) -> tuple[float, float]:
        return mean(group, split, metric), -mean(group, split, "loss")

    return max(finite, key=rank)


def _finite(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups records by configuration, without those that diverged with any seed."""
    configurations: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        configurations.setdefault(tuple(record.get(name) for name in SETTING), []).append(record)
    return [
        group
        for group in configurations.values()
        if not any(record["diverged"] for record in group)
    ]


def mean(records: Sequence[dict[str, Any]], split: str, metric: str) -> float:
    """Returns the mean of a metric over records."""
    return statistics.fmean(record[split][metric] for record in records)
