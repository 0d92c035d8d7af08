"""The students of a run: their architecture, and the compiled functions they share."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import optax

from remem_jax import mesh, models, random_streams
from remem_jax.checks import require
from remem_jax.data.images.augment import Mixing
from remem_jax.methods import METHODS
from remem_jax.models import projection, stages
from remem_jax.models.normalisation import IDENTITY, Normalisation
from remem_jax.records import Key, Outputs, TeacherApply, Variables
from remem_jax.settings import divisor
from remem_jax.train import averaging, lockstep, state, steps, student_losses, teacher_queue
from remem_jax.train.steps import StudentStep
from remem_jax.weights import augreg, initial_students, student_normalisation
from remem_jax.weights.initial_students import InitialStudent
from remem_jax.workflow import context, initial_checkpoints
from remem_jax.workflow.remem import finetune, student_steps
from remem_jax.workflow.remem.student_grid import LABELS, GridPoint


class StudentSetup(NamedTuple):
    """The architecture that all students of a run share, and a compiled step for each loss.

    Attributes:
        first: Creates random variables of a student, given its seed.
        shapes: Shapes and shardings of a student's state, by loss. With a loss of features, the
            state has a projection, and perhaps a queue, which the variables of `first` lack.
        first_states: Creates a student's state at step 0, given its seed and whether it is
            pretrained; by loss.
        steps: The compiled step of one student, by loss.
        measure: Evaluates students, given variables like those of `first`, on a split.
        augment: The compiled augmentation that teacher and students share.
        normalisation: Normalisation of the images in the student.
        architecture: See `InitialStudent`; students from scratch have it too.
        initial: The pretrained weights of the students; None if all start from random weights.
        random_steps: Steps of students from random weights that differ from `steps`, by loss.
    """

    first: Callable[[int], Variables]
    shapes: dict[str, state.TrainState]
    first_states: dict[str, Callable[[int, bool], state.TrainState]]
    steps: dict[str, StudentStep]
    measure: context.Measure
    augment: lockstep.Augment
    normalisation: Normalisation = IDENTITY
    architecture: Mapping[str, str] = MappingProxyType({})
    initial: InitialStudent | None = None
    random_steps: Mapping[str, StudentStep] = {}

    def step(self, point: GridPoint) -> StudentStep:
        """Returns the compiled step of a student."""
        random = {} if point.pretrained else self.random_steps
        return random.get(point.loss, self.steps[point.loss])

    def first_state(self, point: GridPoint) -> state.TrainState:
        """Creates the state of a student at step 0."""
        return self.first_states[point.loss](int(point.hyperparameters.seed), point.pretrained)


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
    initial = run.preloaded.take_student(run.config)
    normalisation = initial_checkpoints.normalisation_of(run.config, initial)
    architecture = initial.architecture if initial else models.STUDENTS[settings.model].architecture
    model = models.make(
        settings.model,
        classes=classes,
        stem=settings.stem,
        dtype=run.config.compute_dtype,
        **student_steps.regularisation(settings),
        **student_normalisation.options(normalisation),
        **architecture,
    )
    params = models.shapes(model, run.config.data.image_size)
    make_optimiser = functools.partial(
        student_steps.make_optimiser, settings, params, paced=run.deadline is not None
    )
    tx = make_optimiser(pretrained=initial is not None)
    key = random_streams.key(run.config.seed, "student")
    init = models.make_init(model, run.config.data.image_size)

    def first(seed: int) -> Variables:
        return init(random_streams.within(key, "parameters", seed))

    def first_state(
        compared: Compared,
        init_key: Key,
        projection_key: Key,
        loaded: Variables | None = None,
    ) -> state.TrainState:
        variables = init(init_key)
        if loaded is not None:
            variables = initial_students.join(variables, loaded)
        variables = compared.added(model, run.config.data.image_size, variables, projection_key)
        return averaging.begin(state.create(variables, tx), decay=settings.ema)

    def keys(seed: int) -> tuple[Key, Key]:
        """Returns the keys of a student's initial parameters and of its projection."""
        init_key, projection_key = (
            random_streams.within(key, name, seed) for name in ("parameters", "projection")
        )
        return init_key, projection_key

    def first_of_seed(create: Callable[..., state.TrainState], seed: int, pretrained: bool) -> Any:
        # As an argument, the weights are not compiled into the function as constants.
        loaded = (initial.variables,) if initial and pretrained else ()
        return create(*keys(seed), *loaded)

    shapes, first_states, makers = {}, {}, {}
    for name, (loss, compared) in _losses(run, pretrained).items():
        apply = run.gather_params(models.student_apply(model, compared.targets))
        makers[name] = functools.partial(student_steps.make_step, settings, apply, loss=loss)
        create = run.jit_create(functools.partial(first_state, compared), *keys(0))
        shapes[name] = run.shapes(jax.eval_shape(create, *keys(0)))
        first_states[name] = functools.partial(first_of_seed, create)
    jit_steps = functools.partial(_jit_steps, run, makers, key, shapes)
    plain_tx = make_optimiser(pretrained=False)
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
    return StudentSetup(
        first,
        shapes,
        first_states,
        jit_steps(tx),
        measure,
        augment,
        normalisation,
        architecture,
        initial,
        jit_steps(plain_tx) if student_steps.has_rates(settings) else {},
    )


def _jit_steps(
    run: context.Run,
    makers: Mapping[str, Callable[..., StudentStep]],
    key: Key,
    shapes: Mapping[str, state.TrainState],
    tx: optax.GradientTransformation,
) -> dict[str, StudentStep]:
    """Compiles, when they are first called, the steps of all losses with an optimiser."""
    return {
        name: run.jit_step_with_key(functools.partial(make, tx=tx), key, shapes[name])
        for name, make in makers.items()
    }


class Compared(NamedTuple):
    """The features of the teacher that a loss compares.

    Attributes:
        targets: Those that a student predicts.
        queue: Number of entries of its `teacher_queue`, and of features of each; None for no queue.
    """

    targets: tuple[projection.Target, ...] = ()
    queue: tuple[int, int] | None = None

    def added(self, model: Any, image_size: int, variables: Variables, key: Key) -> Variables:
        """Adds a student's projection and queue, as far as it has them, to its variables."""
        if self.targets:
            layers = models.projected(model, self.targets, image_size)
            variables = projection.add(variables, key, layers)
        return teacher_queue.add(variables, *self.queue) if self.queue else variables


def _losses(
    run: context.Run, pretrained: finetune.Pretrained | None
) -> dict[str, tuple[steps.Loss, Compared]]:
    """Returns, for each `GridPoint.loss` of a run, the loss and the features it compares."""
    weights = run.class_weights(run.config.student.class_balance)
    bind = functools.partial(student_steps.bind, run.config.student, weights)
    losses: dict[str, tuple[steps.Loss, Compared]] = {}
    if pretrained:
        distilled = bind(unlabelled=run.dataset.unlabelled is not None)
        for name in run.config.student.losses:
            loss = student_losses.LOSSES[name]
            losses[name] = distilled(loss), _compared(run, pretrained.checkpoint, loss)
    if any(not METHODS[method].has_teacher for method in run.config.methods):
        losses[LABELS] = bind(unlabelled=False)(student_losses.LABELS), Compared()
    return losses


def _compared(
    run: context.Run, checkpoint: augreg.Checkpoint, loss: student_losses.StudentLoss
) -> Compared:
    """Returns the features that a loss compares, of teachers that start from a checkpoint."""
    require(
        "cls" not in loss.features or "cls" in checkpoint.arrays,
        f"config.student.losses has {loss.name!r}, and the ViT of {run.config.teacher.init} has no "
        "[CLS] token: take 'features', which are its patches.",
    )
    size = checkpoint.size
    side, layers = run.config.data.image_size // size.pixels, len(stages.blocks(size.depth))
    targets = tuple(
        projection.Target(field, side, size.features, layers if field == "layers" else 0)
        for field in loss.features
    )
    if not loss.has_queue:
        return Compared(targets)
    unlabelled = run.dataset.unlabelled
    images = len(run.dataset.splits["train"].rows) + (unlabelled.images if unlabelled else 0)
    return Compared(targets, (teacher_queue.entries(images), size.features))


def make_targets(run: context.Run, teacher_apply: TeacherApply) -> TeacherApply:
    """Compiles the outputs that students learn from: the teacher's, with flattened logits.

    Those of calibrated teachers are divided later; see `targets.of_teacher`.
    """
    gathered, flatten = run.gather_params(teacher_apply), divisor(run.config.student)

    def compute_targets(variables: Variables, images: jax.Array) -> Outputs:
        outputs: Outputs = gathered(variables, images)
        return outputs._replace(logits=outputs.logits / flatten)

    return jax.jit(compute_targets, out_shardings=mesh.batch_sharding(run.mesh))
