"""The students of a run: their architecture, their grid, and the compiled functions they share."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from remem_jax import mesh, models, optim, random_streams
from remem_jax.checks import require
from remem_jax.data.images.augment import Mixing
from remem_jax.methods import METHODS, SCRATCH
from remem_jax.models import projection
from remem_jax.records import Hyperparameters, Key, Outputs, TeacherApply, Variables
from remem_jax.train import lockstep, state, steps, student_losses
from remem_jax.train.steps import StudentStep
from remem_jax.weights import augreg
from remem_jax.workflow import context
from remem_jax.workflow.remem import finetune


class GridPoint(NamedTuple):
    """One student of a grid.

    Attributes:
        loss: Name of its loss: one of `student_losses.LOSSES`, or `SCRATCH`.
        hyperparameters: Its other hyperparameters.
    """

    loss: str
    hyperparameters: Hyperparameters


class StudentSetup(NamedTuple):
    """The architecture that all students of a run share, and a compiled step for each loss.

    Attributes:
        first: Creates a student's initial variables, given its seed.
        shapes: Shapes and shardings of a student's state, by loss. With a loss of features, the
            state has a projection, which the variables of `first` lack.
        first_states: Creates a student's state at step 0, given its seed; by loss.
        steps: The compiled step of one student, by loss.
        measure: Evaluates students, given variables like those of `first`, on a split.
        augment: The compiled augmentation that teacher and students share.
    """

    first: Callable[[int], Variables]
    shapes: dict[str, state.State]
    first_states: dict[str, Callable[[int], state.State]]
    steps: dict[str, StudentStep]
    measure: context.Measure
    augment: lockstep.Augment

    def first_state(self, point: GridPoint) -> state.State:
        """Creates the state of a student at step 0."""
        return self.first_states[point.loss](int(point.hyperparameters.seed))


class StudentGrid(NamedTuple):
    """The students of one method, for any of its teacher's checkpoints.

    Attributes:
        stage: Name of the method's stage of the run.
        points: The students.
        compute_targets: The teacher's outputs in evaluation mode, compiled once for all its
            checkpoints; None without a teacher.
        shapes: Shapes and shardings of the teacher's variables.
    """

    stage: str
    points: Sequence[GridPoint]
    compute_targets: TeacherApply | None
    shapes: Variables

    @property
    def one_per_loss(self) -> list[GridPoint]:
        """One student of each loss; students with the same loss share a compiled step."""
        return list({point.loss: point for point in self.points}.values())


def make(run: context.Run, pretrained: finetune.Pretrained | None) -> StudentSetup:
    """Builds the students that `config.student` describes.

    Args:
        run: The run.
        pretrained: The pretrained teacher; None if no method of the run has one.

    Raises:
        SettingError: If a loss needs a [CLS] token and the teacher has none.
    """
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
        clip_norm=None,
    )
    key = random_streams.key(run.config.seed, "student")
    init = models.make_init(model, run.config.data.image_size)

    def first(seed: int) -> Variables:
        return init(random_streams.within(key, "parameters", seed))

    def first_state(
        target: projection.Target | None, init_key: Key, projection_key: Key
    ) -> state.State:
        variables = init(init_key)
        if target:
            channels = models.trunk_channels(model, run.config.data.image_size)
            variables = projection.add(
                variables, projection_key, channels=channels, width=target.width
            )
        return state.create(variables, tx)

    def keys(seed: int) -> tuple[Key, Key]:
        """Returns the keys of a student's initial parameters and of its projection."""
        init_key, projection_key = (
            random_streams.within(key, name, seed) for name in ("parameters", "projection")
        )
        return init_key, projection_key

    shapes, first_states, jitted_steps = {}, {}, {}
    for name, (loss, target) in _losses(run, pretrained).items():
        apply = run.gather_params(models.student_apply(model, target))
        step = functools.partial(steps.make_student_step, apply, tx, loss=loss)
        create = run.jit_create(functools.partial(first_state, target), *keys(0))
        shapes[name] = run.shapes(jax.eval_shape(create, *keys(0)))
        first_states[name] = lambda seed, create=create: create(*keys(seed))
        jitted_steps[name] = run.jit_step_with_key(step, key, shapes[name])
    measure = context.make_measure(run, models.evaluation_apply(model), settings.batch_size)
    augment = random_streams.JitWithKey(
        functools.partial(
            lockstep.make_augment,
            run.train_transform,
            classes=classes,
            mixing=Mixing(settings.mixup, settings.cutmix),
        ),
        key,
        out_shardings=mesh.batch_sharding(run.mesh),
    )
    return StudentSetup(first, shapes, first_states, jitted_steps, measure, augment)


def _losses(
    run: context.Run, pretrained: finetune.Pretrained | None
) -> dict[str, tuple[steps.Loss, projection.Target | None]]:
    """Returns, for each `GridPoint.loss` of a run, the loss and the features it compares."""
    hard_labels = bool(run.config.student.hard_labels)
    weights = run.class_weights(run.config.student.class_balance)

    def bind(loss: student_losses.StudentLoss) -> steps.Loss:
        bound = functools.partial(loss, hard_labels=hard_labels)
        return student_losses.with_class_weights(bound, weights)

    losses: dict[str, tuple[steps.Loss, projection.Target | None]] = {}
    if pretrained:
        for name in run.config.student.losses:
            loss = student_losses.LOSSES[name]
            losses[name] = bind(loss), _target(run, pretrained.checkpoint, loss)
    if any(not METHODS[method].has_teacher for method in run.config.methods):
        losses[SCRATCH] = bind(student_losses.SCRATCH), None
    return losses


def _target(
    run: context.Run, checkpoint: augreg.Checkpoint, loss: student_losses.StudentLoss
) -> projection.Target | None:
    """Returns which features a loss compares, of teachers that start from a checkpoint."""
    if loss.features is None:
        return None
    require(
        loss.features != "cls" or checkpoint.options["pool"] == "cls",
        f"config.student.losses has {loss.name!r}, and the ViT of {run.config.teacher.init} has no "
        "[CLS] token: take 'features', which are its patches.",
    )
    size = checkpoint.size
    return projection.Target(
        loss.features, run.config.data.image_size // size.pixels, size.features
    )


def grid_points(settings: ConfigDict) -> list[GridPoint]:
    """Returns the grid of `config.student`, without duplicates.

    If a loss does not use a hyperparameter, only its first value is in the grid.
    """
    points = []
    for loss in settings.losses:
        used = student_losses.used(loss, hard_labels=settings.hard_labels)
        temperatures, weights = (
            values if name in used else values[:1]
            for name, values in (
                ("temperature", settings.temperatures),
                ("weight", settings.weights),
            )
        )
        axes = settings.learning_rates, temperatures, weights, settings.seeds
        points += [
            GridPoint(loss, Hyperparameters(float(rate), float(temperature), float(weight), seed))
            for rate, temperature, weight, seed in itertools.product(*axes)
        ]
    return points


def scratch_points(settings: ConfigDict) -> list[GridPoint]:
    """Returns the grid of `config.student` for students from scratch."""
    return [
        GridPoint(SCRATCH, Hyperparameters(float(rate), 1.0, 0.0, seed))
        for rate, seed in itertools.product(settings.learning_rates, settings.seeds)
    ]


def hyperparameters(point: GridPoint, *, hard_labels: bool) -> dict[str, Any]:
    """Returns a student's hyperparameters for the results; None for those its loss does not use."""
    used = student_losses.used(point.loss, hard_labels=hard_labels)
    unused = {"temperature", "weight"} - used
    return point.hyperparameters._asdict() | dict.fromkeys(unused)


def scratch_grid(run: context.Run) -> StudentGrid:
    """Builds the grid from scratch: from labels alone, whatever `config.student.hard_labels` is."""
    return StudentGrid(f"students/{SCRATCH}", scratch_points(run.config.student), None, {})


def make_grid(
    run: context.Run, stage: str, compute_targets: TeacherApply, shapes: Variables
) -> StudentGrid:
    """Builds the grid that learns from the teachers of one method; see `StudentGrid`."""
    return StudentGrid(stage, grid_points(run.config.student), compute_targets, run.shapes(shapes))


def make_targets(run: context.Run, teacher_apply: TeacherApply) -> TeacherApply:
    """Compiles the outputs that students learn from: the teacher's, with flattened logits."""
    gathered, flatten = run.gather_params(teacher_apply), run.config.student.flatten

    def compute_targets(variables: Variables, images: jax.Array) -> Outputs:
        outputs: Outputs = gathered(variables, images)
        return outputs._replace(logits=outputs.logits / flatten)

    return jax.jit(compute_targets, out_shardings=mesh.batch_sharding(run.mesh))
