"""What the students of a run have in common: architecture, grid, what they are taught by."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from remem_jax import losses, mesh, models, optim
from remem_jax.records import Apply, Key, Settings, Variables
from remem_jax.train import lockstep, state, steps
from remem_jax.train.steps import StudentStep
from remem_jax.workflow import parts


class Point(NamedTuple):
    """One student of a grid.

    Attributes:
        loss: Its name in `losses.STUDENT_LOSSES`.
        settings: What else tells it from the others.
    """

    loss: str
    settings: Settings


class Classroom(NamedTuple):
    """What all students of a run share: one architecture, one compiled step for each loss.

    Attributes:
        first: Makes the variables that a student with a seed starts from.
        tx: Optimiser, for a peak learning rate of 1.
        steps: The compiled step of one student, by the name of its loss.
        measure: Metrics of a student on a split.
        view_pass: What all models see of a batch, compiled.
    """

    first: Callable[[int], Variables]
    tx: optax.GradientTransformation
    steps: dict[str, StudentStep]
    measure: parts.Measure
    view_pass: lockstep.ViewPass

    def first_state(self, seed: int) -> state.State:
        """The state of a student at step 0."""
        return state.create(self.first(seed), self.tx)


class Course(NamedTuple):
    """What the students of one method are taught by, whichever of its teachers it is.

    Attributes:
        part: Name of the method's part of the run.
        points: The students.
        answer: The teachers in evaluation mode, compiled once for all.
        shapes: Of a teacher's variables.
    """

    part: str
    points: Sequence[Point]
    answer: Apply
    shapes: Variables


def make(run: parts.Run) -> Classroom:
    """Makes the student that `config.student` names, and its steps."""
    settings = run.config.student
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
    _, view_key, dropout_key = _keys(run.config.seed)

    init = models.make_init(model, run.config.data.image_size)

    def first(seed: int) -> Variables:
        init_key, _, _ = _keys(run.config.seed + seed)
        return init(init_key)

    def first_state() -> state.State:
        return state.create(first(0), tx)

    apply = run.spread(models.train_apply(model))
    of_losses = {
        name: run.jit_step(
            steps.make_student_step(apply, tx, loss=losses.STUDENT_LOSSES[name], key=dropout_key),
            first_state,
        )
        for name in settings.losses
    }
    measure = parts.make_measure(run, models.evaluation_apply(model), settings.batch_size)
    view_pass = lockstep.make_view_pass(
        run.feed.train_view, classes=classes, key=view_key, mixup=settings.mixup
    )
    jitted = jax.jit(view_pass, out_shardings=mesh.batch_sharding(run.mesh))
    return Classroom(first, tx, of_losses, measure, jitted)


def _keys(seed: int) -> tuple[Key, Key, Key]:
    """Of first parameters, of views, of what is dropped."""
    init_key, view_key, dropout_key = jax.random.split(
        jax.random.fold_in(jax.random.key(seed), 1), 3
    )
    return init_key, view_key, dropout_key


def grid(settings: ConfigDict) -> list[Point]:
    """Every point of `config.student`'s grid."""
    axes = (
        settings.losses,
        settings.learning_rates,
        settings.temperatures,
        settings.weights,
        settings.seeds,
    )
    return [
        Point(loss, Settings(float(rate), float(temperature), float(weight), seed))
        for loss, rate, temperature, weight, seed in itertools.product(*axes)
    ]


def no_teacher(run: parts.Run) -> Course:
    """Silent logits: at weight 0 they count for nothing, and the compiled step is shared."""
    settings, classes = run.config.student, len(run.dataset.classes)
    points = [
        Point(settings.losses[0], Settings(float(rate), 1.0, 0.0, seed))
        for rate, seed in itertools.product(settings.learning_rates, settings.seeds)
    ]

    def apply(variables: Variables, images: jax.Array) -> jax.Array:
        del variables
        return jnp.zeros((images.shape[0], classes))

    course = make_course(run, "students/scratch", apply, {})
    return course._replace(points=points)


def make_course(run: parts.Run, part: str, teach: Apply, shapes: Variables) -> Course:
    """The whole grid, taught by the teachers of one method."""
    spread, flatten = run.spread(teach), run.config.student.flatten

    def answer(variables: Variables, images: jax.Array) -> jax.Array:
        return spread(variables, images) / flatten

    jitted = jax.jit(answer, out_shardings=mesh.batch_sharding(run.mesh))
    return Course(part, grid(run.config.student), jitted, run.shapes(shapes))
