"""Students: for every teacher, one per point of a small grid, trained in lockstep."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from remem_jax import mesh
from remem_jax.records import Batch, Variables
from remem_jax.storage import checkpoints, results
from remem_jax.train import flops, lockstep, loop
from remem_jax.workflow import groups, lessons, parts
from remem_jax.workflow.classroom import Classroom, Course, Point, make_course, no_teacher
from remem_jax.workflow.finetune import Teachers


def from_scratch(run: parts.Run, classroom: Classroom) -> list[dict[str, Any]]:
    """Trains the grid's learning rates without a teacher; see `_train_groups`."""
    course = no_teacher(run)
    silent = lessons.live(course.answer, lambda: {})
    trained = _train_groups(run, classroom, course, course.part, silent)
    for group in trained:
        for student in group["students"]:
            student.update(loss=None, temperature=None, weight=None)
    return [{"teacher_step": None, **group} for group in trained]


def from_teachers(run: parts.Run, classroom: Classroom, teachers: Teachers) -> list[dict[str, Any]]:
    """Trains the whole grid on each of the teachers; see `_train_groups`."""
    part = f"students/{teachers.method}"
    course = make_course(run, part, teachers.apply, teachers.shapes)
    found = []
    for record in teachers.records:
        step = record["step"]
        teacher = lessons.of_teacher(run, course.answer, teachers, step)
        trained = _train_groups(run, classroom, course, f"{part}/step_{step}", teacher)
        found.extend({"teacher_step": step, **group} for group in trained)
    return found


def best_of(run: parts.Run, classroom: Classroom, part: str) -> Variables:
    """Variables of the best student of a group."""
    shapes = run.shapes(jax.eval_shape(lambda: classroom.first(0)))
    return checkpoints.load_tree(run.workdir / part / "best", shapes)


def _train_groups(
    run: parts.Run,
    classroom: Classroom,
    course: Course,
    part: str,
    teacher: lessons.Teacher,
) -> list[dict[str, Any]]:
    """Trains the students of one teacher, group by group; where that is done, reads what is there.

    Returns:
        For each group "part", "seconds", and "students": settings, metrics on validation, and
        whether the student diverged. The best one's variables are kept.
    """
    whole = results.read_for_all(run.workdir / part / "result.json")
    if whole:  # Also where another device would not hold as many.
        return [whole]
    size, students = groups.size(run, classroom, course), len(course.points)
    if size == students:
        return [_train_group(run, classroom, course, part, dict(enumerate(course.points)), teacher)]
    ranges = [range(i, min(i + size, students)) for i in range(0, students, size)]
    return [
        _train_group(
            run,
            classroom,
            course,
            f"{part}/students_{own[0]}_to_{own[-1]}",
            {i: course.points[i] for i in own},
            teacher,
        )
        for own in ranges
    ]


def _train_group(
    run: parts.Run,
    classroom: Classroom,
    course: Course,
    part: str,
    points: dict[int, Point],
    teacher: lessons.Teacher,
) -> dict[str, Any]:
    folder = run.workdir / part
    before = results.read_for_all(folder / "result.json")
    if before:
        return before
    validation: list[dict[str, float]] = []

    def milestone(at: int, now: lockstep.States) -> None:
        validation[:] = [classroom.measure(one.variables, "validation") for one in now]
        parts.log_validation(run, part, at, [one[run.dataset.metric] for one in validation])

    with teacher() as teach:
        job = _job(run, classroom, course, points, teach)._replace(milestone=milestone)
        try:
            students, seconds = parts.train(run, part, job)
        except loop.NonFiniteLossError:
            if len(points) == len(course.points):
                raise  # Else other groups go on, as other students of this one would.
            students, seconds = (), 0.0
            validation = [dict.fromkeys((run.dataset.metric, "loss"), math.nan) for _ in points]
    if not validation:  # Killed between the last checkpoint and the result.
        milestone(job.steps, students)
    records = [
        {
            "student": i,
            "loss": point.loss,
            **point.settings._asdict(),
            "validation": metrics,
            "diverged": not np.isfinite(metrics["loss"]),
        }
        for (i, point), metrics in zip(points.items(), validation, strict=True)
    ]
    if students:
        best = select(records, run.dataset.metric)
        of_best = students[list(points).index(best["student"])]
        checkpoints.save_tree(folder / "best", dict(of_best.variables))
    result = results.finite({"part": part, "seconds": seconds, "students": records})
    results.write_for_all(folder / "result.json", result)
    if mesh.is_writer():
        checkpoints.remove(folder / parts.CHECKPOINTS)
    return result


def _job(
    run: parts.Run,
    classroom: Classroom,
    course: Course,
    points: dict[int, Point],
    teach: lockstep.Teach,
) -> parts.Job:
    """The training of a group of students, but for what is looked at on the way."""
    settings, own = run.config.student, list(points.values())
    taught = [(classroom.steps[point.loss], point.settings) for point in own]
    every = np.linspace(0, settings.steps, settings.evaluations + 1)[1:]

    def operations(states: lockstep.States, batch: Batch) -> float:
        """With the teacher's pass, whether or not its answers are stored."""
        number = jax.ShapeDtypeStruct((), "int32")
        seen = jax.eval_shape(classroom.view_pass, number, batch)
        logits = jax.eval_shape(course.answer, course.shapes, seen.images)
        of_losses = {
            point.loss: flops.count(
                classroom.steps[point.loss], states[0], *seen, logits, point.settings
            )
            for point in {point.loss: point for point in own}.values()
        }
        of_students = sum(of_losses[point.loss] for point in own)
        return flops.count(course.answer, course.shapes, seen.images) + of_students

    return parts.Job(
        tuple(run.place(classroom.first_state(int(point.settings.seed))) for point in own),
        lambda first_step: lockstep.make_step(
            classroom.view_pass, teach, taught, first_step=first_step
        ),
        operations,
        settings.batch_size,
        settings.steps,
        tuple(round(float(at)) for at in every),
        lambda at, now: None,
    )


def select(records: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The record that is best on validation, of those that did not diverge.

    Equals are told apart by the lower loss. Raises `NonFiniteLossError` if all diverged.
    """

    def rank(record: dict[str, Any]) -> tuple[float, float]:
        metrics = record["validation"]
        return metrics[metric], -metrics["loss"]

    sound = [record for record in records if not record["diverged"]]
    if not sound:
        raise loop.NonFiniteLossError(
            "Every student diverged on validation; lower config.student.learning_rates."
        )
    return max(sound, key=rank)
