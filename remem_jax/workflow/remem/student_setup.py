"""What the students of a run have in common: architecture, grid, what they are taught by."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from remem_jax import mesh, models, optim, random_streams
from remem_jax.checks import require
from remem_jax.models import projection
from remem_jax.records import Hyperparameters, Key, Outputs, TeacherApply, Variables
from remem_jax.settings import METHODS
from remem_jax.train import lockstep, objectives, state, steps
from remem_jax.train.steps import StudentStep
from remem_jax.weights import augreg
from remem_jax.workflow import context
from remem_jax.workflow.remem import finetune

SCRATCH = "scratch"  # The step of students without a teacher, whose loss is labels alone.


class GridPoint(NamedTuple):
    """One student of a grid.

    Attributes:
        loss: Its name in `StudentSetup.steps`: one of `objectives.STUDENT_LOSSES`, or `SCRATCH`.
        hyperparameters: What else tells it from the others.
    """

    loss: str
    hyperparameters: Hyperparameters


class StudentSetup(NamedTuple):
    """What all students of a run share: one architecture, one compiled step for each loss.

    Attributes:
        first: Makes the variables that a student with a seed starts from.
        shapes: Of its state, as it lies on the devices, by the name of its loss: where it learns
            features, with a projection, which `first` has not.
        first_states: Makes this state at step 0, of a seed, by the name of its loss.
        steps: The compiled step of one student, by the name of its loss.
        measure: Metrics of a student (of its variables as `first` has them) on a split.
        augment: What all models see of a batch, compiled.
    """

    first: Callable[[int], Variables]
    shapes: dict[str, state.State]
    first_states: dict[str, Callable[[int], state.State]]
    steps: dict[str, StudentStep]
    measure: context.Measure
    augment: lockstep.Augment

    def first_state(self, point: GridPoint) -> state.State:
        """The state of a student at step 0."""
        return self.first_states[point.loss](int(point.hyperparameters.seed))


class StudentGrid(NamedTuple):
    """What the students of one method are taught by, whichever of its teachers it is.

    Attributes:
        stage: Name of the method's part of the run.
        points: The students.
        answer: What the teachers say, in evaluation mode, compiled once for all; None without a
            teacher.
        shapes: Of a teacher's variables.
    """

    stage: str
    points: Sequence[GridPoint]
    answer: TeacherApply | None
    shapes: Variables

    @property
    def one_per_loss(self) -> list[GridPoint]:
        """A student of each loss; those of one loss are stepped alike."""
        return list({point.loss: point for point in self.points}.values())


def make(run: context.Run, pretrained: finetune.Pretrained | None) -> StudentSetup:
    """Makes the student that `config.student` names, and its steps.

    Args:
        run: The run.
        pretrained: What its teachers start from, and have their features of; None where no method
            of the run has a teacher.

    Raises:
        SettingError: If a loss needs a [CLS] token, and the teachers have none.
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
    )
    key = random_streams.key(run.config.seed, "student")
    init = models.make_init(model, run.config.data.image_size)

    def first(seed: int) -> Variables:
        return init(random_streams.within(key, "parameters", seed))

    def first_state(target: projection.Target | None, init_key: Key, own_key: Key) -> state.State:
        variables = init(init_key)
        if target:
            channels = models.trunk_channels(model, run.config.data.image_size)
            variables = projection.add(variables, own_key, channels=channels, width=target.width)
        return state.create(variables, tx)

    def keys(seed: int) -> tuple[Key, Key]:
        """Of a student's first parameters, and of its projection."""
        init_key, own_key = (
            random_streams.within(key, name, seed) for name in ("parameters", "projection")
        )
        return init_key, own_key

    shapes, first_states, of_losses = {}, {}, {}
    for name, (loss, target) in _objectives(run, pretrained).items():
        apply = run.gather_params(models.student_apply(model, target))
        step = functools.partial(steps.make_student_step, apply, tx, loss=loss)
        create = run.jit_create(functools.partial(first_state, target), *keys(0))
        shapes[name] = run.shapes(jax.eval_shape(create, *keys(0)))
        first_states[name] = lambda seed, create=create: create(*keys(seed))
        of_losses[name] = run.jit_step_with_key(step, key, shapes[name])
    measure = context.make_measure(run, models.evaluation_apply(model), settings.batch_size)
    augment = random_streams.JitWithKey(
        functools.partial(
            lockstep.make_augment, run.loader.train_transform, classes=classes, mixup=settings.mixup
        ),
        key,
        out_shardings=mesh.batch_sharding(run.mesh),
    )
    return StudentSetup(first, shapes, first_states, of_losses, measure, augment)


def _objectives(
    run: context.Run, pretrained: finetune.Pretrained | None
) -> dict[str, tuple[objectives.StudentLoss, projection.Target | None]]:
    """What students minimise, and which features they predict, by the names of `GridPoint.loss`."""
    found: dict[str, tuple[objectives.StudentLoss, projection.Target | None]] = {}
    if pretrained:
        hard_labels = bool(run.config.student.hard_labels)
        for name in run.config.student.losses:
            loss = functools.partial(objectives.STUDENT_LOSSES[name], hard_labels=hard_labels)
            found[name] = loss, _target(run, pretrained.checkpoint, name)
    if any(METHODS[method] is None for method in run.config.methods):
        found[SCRATCH] = objectives.labels_alone, None
    return found


def _target(run: context.Run, checkpoint: augreg.Checkpoint, loss: str) -> projection.Target | None:
    """Which features of teachers from a checkpoint a loss compares."""
    field = objectives.FEATURES.get(loss)
    if field is None:
        return None
    require(
        field != "cls" or checkpoint.options["pool"] == "cls",
        f"config.student.losses has {loss!r}, and the ViT of {run.config.teacher.init} has no "
        "[CLS] token: take 'features', which are its patches.",
    )
    size = checkpoint.size
    return projection.Target(field, run.config.data.image_size // size.pixels, size.features)


def grid_points(settings: ConfigDict) -> list[GridPoint]:
    """Every point of `config.student`'s grid, but for those that no setting of theirs tells apart.

    Of what does not count for a loss, the first value stands for all.
    """
    points = []
    for loss in settings.losses:
        counting = objectives.counting(loss, hard_labels=settings.hard_labels)
        temperatures, weights = (
            values if name in counting else values[:1]
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
    """Every point of `config.student`'s grid for students from scratch."""
    return [
        GridPoint(SCRATCH, Hyperparameters(float(rate), 1.0, 0.0, seed))
        for rate, seed in itertools.product(settings.learning_rates, settings.seeds)
    ]


def counting(point: GridPoint, *, hard_labels: bool) -> dict[str, Any]:
    """A student's settings; None of those that do not count for its loss."""
    names: frozenset[str] = frozenset()
    if point.loss in objectives.STUDENT_LOSSES:
        names = objectives.counting(point.loss, hard_labels=hard_labels)
    return point.hyperparameters._asdict() | dict.fromkeys({"temperature", "weight"} - names)


def scratch_grid(run: context.Run) -> StudentGrid:
    """Students from scratch: they learn from labels, whatever `config.student.hard_labels` says."""
    return StudentGrid("students/scratch", scratch_points(run.config.student), None, {})


def make_grid(run: context.Run, stage: str, answer: TeacherApply, shapes: Variables) -> StudentGrid:
    """The whole grid, taught by the teachers of one method, of `make_answer`."""
    return StudentGrid(stage, grid_points(run.config.student), answer, run.shapes(shapes))


def make_answer(run: context.Run, teach: TeacherApply) -> TeacherApply:
    """What students learn from: outputs of teachers in evaluation mode, flattened, compiled."""
    spread, flatten = run.gather_params(teach), run.config.student.flatten

    def answer(variables: Variables, images: jax.Array) -> Outputs:
        said: Outputs = spread(variables, images)
        return said._replace(logits=said.logits / flatten)

    return jax.jit(answer, out_shardings=mesh.batch_sharding(run.mesh))
