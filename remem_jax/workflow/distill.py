"""Students: for every teacher, one per point of a small grid, trained in lockstep."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from remem_jax import mesh, models, optim
from remem_jax.records import Apply, Key, Settings, Variables
from remem_jax.storage import checkpoints, results
from remem_jax.train import lockstep, loop, state, steps
from remem_jax.train.steps import StudentStep
from remem_jax.workflow import parts
from remem_jax.workflow.finetune import Teachers

NO_TEACHER: Variables = {}


class Classroom(NamedTuple):
    """What all students of a run share: one architecture, one compiled step.

    Attributes:
        first: Variables that every student starts from.
        tx: Optimiser, for a peak learning rate of 1.
        step: The compiled step of one student.
        measure: Metrics of a student on a split.
        view_key: Root of the randomness of the views.
    """

    first: Variables
    tx: optax.GradientTransformation
    step: StudentStep
    measure: parts.Measure
    view_key: Key

    def first_state(self) -> state.State:
        """The state of a student at step 0."""
        return state.create(self.first, self.tx)


def make_classroom(run: parts.Run) -> Classroom:
    """Makes the student that `config.student` names, and its step."""
    settings = run.config.student
    key = jax.random.fold_in(jax.random.key(run.config.seed), 1)
    init_key, view_key, dropout_key = jax.random.split(key, 3)
    classes = len(run.dataset.classes)
    model = models.make(
        settings.model, classes=classes, stem=settings.stem, dtype=run.config.compute_dtype
    )
    tx = optim.sgd(
        optim.warmup_cosine(peak=1.0, steps=settings.steps, warmup_steps=settings.warmup_steps),
        momentum=settings.momentum,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    step = steps.make_student_step(run.spread(models.train_apply(model)), tx, key=dropout_key)
    first = models.init(model, init_key, run.config.data.image_size)
    return Classroom(
        first,
        tx,
        run.jit_step(step, lambda: state.create(first, tx)),
        parts.make_measure(run, models.evaluation_apply(model), settings.batch_size),
        view_key,
    )


def from_scratch(run: parts.Run, classroom: Classroom) -> dict[str, Any]:
    """Trains the grid's learning rates without a teacher; see `_train_group`."""
    rates = [Settings(float(rate), 1.0, 0.0) for rate in run.config.student.learning_rates]
    lessons = make_lessons(run, classroom, no_teacher(run))
    group = _train_group(run, classroom, "students/scratch", rates, lessons, NO_TEACHER)
    for student in group["students"]:
        student.update(temperature=None, weight=None)
    return {"teacher_step": None, **group}


def from_teachers(run: parts.Run, classroom: Classroom, teachers: Teachers) -> list[dict[str, Any]]:
    """Trains the whole grid on each of the teachers; see `_train_group`."""
    points = grid(run.config.student)
    lessons = make_lessons(run, classroom, teachers.apply)
    groups = []
    for record in teachers.records:
        part = f"students/{teachers.method}/step_{record['step']}"
        group = _train_group(run, classroom, part, points, lessons, teachers.load(record["step"]))
        groups.append({"teacher_step": record["step"], **group})
    return groups


def best_of(run: parts.Run, classroom: Classroom, part: str) -> Variables:
    """Variables of the best student of a group."""
    return checkpoints.load_tree(run.workdir / part / "best", run.shapes(classroom.first))


def grid(settings: ConfigDict) -> list[Settings]:
    """Every point of `config.student`'s grid."""
    axes = (settings.learning_rates, settings.temperatures, settings.weights)
    return [Settings(*map(float, point)) for point in itertools.product(*axes)]


def no_teacher(run: parts.Run) -> Apply:
    """Silent logits: at weight 0 they count for nothing, and the compiled step is shared."""
    classes = len(run.dataset.classes)

    def apply(variables: Variables, images: jax.Array) -> jax.Array:
        del variables
        return jnp.zeros((images.shape[0], classes))

    return apply


def make_lessons(run: parts.Run, classroom: Classroom, teach: Apply) -> lockstep.TeacherPass:
    """The pass of the teachers of one method, compiled once for all their checkpoints."""
    view, mixup = run.feed.train_view, run.config.student.mixup
    teacher_pass = lockstep.make_teacher_pass(
        run.spread(teach), view, key=classroom.view_key, mixup=mixup
    )
    return jax.jit(teacher_pass, out_shardings=mesh.batch_sharding(run.mesh))


def _train_group(
    run: parts.Run,
    classroom: Classroom,
    part: str,
    grid: Sequence[Settings],
    lessons: lockstep.TeacherPass,
    teacher: Variables,
) -> dict[str, Any]:
    """Trains the students of one teacher; where that is done, reads what is there.

    Returns:
        "part", "seconds", and "students": settings, metrics on validation, and whether the
        student diverged. The best one's variables are kept.
    """
    settings, folder = run.config.student, run.workdir / part
    before = results.read_for_all(folder / "result.json")
    if before:
        return before
    validation: list[dict[str, float]] = []

    def milestone(at: int, now: lockstep.States) -> None:
        validation[:] = [classroom.measure(one.variables, "validation") for one in now]
        parts.log_validation(run, part, at, [one[run.dataset.metric] for one in validation])

    every = np.linspace(0, settings.steps, settings.evaluations + 1)[1:]
    students, seconds = parts.train(
        run,
        part,
        tuple(run.place(classroom.first_state()) for _ in grid),
        lockstep.make_step(lessons, teacher, classroom.step, grid),
        batch_size=settings.batch_size,
        steps=settings.steps,
        milestones=tuple(round(float(at)) for at in every),
        milestone=milestone,
    )
    if not validation:  # Killed between the last checkpoint and the result.
        milestone(settings.steps, students)
    records = [
        {
            "student": i,
            **own._asdict(),
            "validation": metrics,
            "diverged": not np.isfinite(metrics["loss"]),
        }
        for i, (own, metrics) in enumerate(zip(grid, validation, strict=True))
    ]
    best = select(records, run.dataset.metric)
    checkpoints.save_tree(folder / "best", dict(students[best["student"]].variables))
    result = results.finite({"part": part, "seconds": seconds, "students": records})
    results.write_for_all(folder / "result.json", result)
    checkpoints.remove(folder / parts.CHECKPOINTS)
    return result


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
