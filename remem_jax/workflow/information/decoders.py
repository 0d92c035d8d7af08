"""Makes the decoders and critics that estimate the information in teachers' features."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax import mesh, models, random_streams
from remem_jax.analysis import info_nce, mutual_information
from remem_jax.checks import require
from remem_jax.models import decoder
from remem_jax.models.rematerialisation import RECOMPUTED
from remem_jax.records import Batch, Key, Metrics, TeacherApply, TrainApply, Variables
from remem_jax.settings.memory import AUTO, recomputed
from remem_jax.train import flops, state
from remem_jax.workflow import context, memory_plan, step_memory, training


class Teacher(NamedTuple):
    """A teacher whose features are measured.

    Attributes:
        name: Name in messages.
        apply: The jitted model in evaluation mode, with patch tokens as an output.
        variables: Its variables.
    """

    name: str
    apply: TeacherApply
    variables: Variables


class Estimators(NamedTuple):
    """Decoders and critics for the features of some teachers, one of each per teacher and seed.

    Attributes:
        teacher_indices: Index of the teacher of each estimator; decoders come first.
        decoders: Number of decoders.
        steps: The jitted step of each estimator.
        shapes: Shapes and shardings of all states.
        first: Creates the states at step 0.
        features: The function from images to features of each teacher.
    """

    teacher_indices: list[int]
    decoders: int
    steps: list[Any]
    shapes: tuple[state.State, ...]
    first: Callable[[], tuple[state.State, ...]]
    features: list[mutual_information.FeatureExtractor]


def make(
    run: context.Run, teachers: Sequence[Teacher], rematerialise: str = "nothing"
) -> Estimators:
    """Makes the decoders and critics of `config.information`.

    Args:
        run: The run.
        teachers: The teachers; for planning, with shapes of their variables.
        rematerialise: What decoders recompute in the backward pass; see `planned_step`.

    Raises:
        SettingError: If the teachers' features have different sizes.
    """
    settings, size = run.config.information, run.config.data.image_size
    side, width = _feature_size(run, teachers)
    tx = mutual_information.adamw(
        settings.learning_rate,
        betas=tuple(settings.betas),
        weight_decay=settings.weight_decay,
        epsilon=settings.epsilon,
    )
    model = decoder.make(image_size=size, align_corners=settings.align_corners)
    trained = model.clone(rematerialise=rematerialise)
    init = decoder.make_init(model, side=side, width=width)
    step = mutual_information.make_decoder_step(models.train_apply(trained), tx)
    spec = critic_inputs(settings)
    require_grid(settings, side)
    init_critic = functools.partial(
        info_nce.init,
        spec=spec,
        width=width,
        hidden=settings.info_nce.hidden,
        embedding=settings.info_nce.embedding,
    )
    make_critic_step = functools.partial(info_nce.make_critic_step, tx, spec)
    critic_key = random_streams.key(run.config.seed, "critic")
    decoder_keys, critic_keys = (
        [random_streams.key(run.config.seed, kind, "parameters", seed) for seed in settings.seeds]
        for kind in ("decoder", "critic")
    )
    critics = len(critic_keys) if settings.info_nce.measured else 0

    first_decoder = run.jit_create(lambda key: state.create(init(key), tx), decoder_keys[0])
    first_critic = run.jit_create(lambda key: state.create(init_critic(key), tx), critic_keys[0])

    def first() -> tuple[state.State, ...]:
        decoders = [first_decoder(key) for _ in teachers for key in decoder_keys]
        return (*decoders, *(first_critic(key) for _ in teachers for key in critic_keys[:critics]))

    decoder_shapes, critic_shapes = (
        run.shapes(jax.eval_shape(create, critic_keys[0]))
        for create in (first_decoder, first_critic)
    )
    jitted = (
        run.jit_step(step, decoder_shapes),
        run.jit_step_with_key(make_critic_step, critic_key, critic_shapes),
    )
    indices = range(len(teachers))
    decoder_teachers = [index for index in indices for _ in decoder_keys]
    critic_teachers = [index for index in indices for _ in range(critics)]
    return Estimators(
        [*decoder_teachers, *critic_teachers],
        len(decoder_teachers),
        [jitted[0]] * len(decoder_teachers) + [jitted[1]] * len(critic_teachers),
        (*[decoder_shapes] * len(decoder_teachers), *[critic_shapes] * len(critic_teachers)),
        first,
        [_feature_extractor(teacher) for teacher in teachers],
    )


def planned_step(run: context.Run, stage: str, teachers: Sequence[Teacher]) -> memory_plan.Step:
    """Describes the step of a decoder for the memory plan.

    While it runs, the states of all other estimators are in memory, and its teacher has run before.

    Args:
        run: The run.
        stage: Name of the stage.
        teachers: The teachers, with their variables or the shapes of these.
    """
    settings, size = run.config.information, run.config.data.image_size
    states = make(run, teachers).shapes
    side, width = _feature_size(run, teachers)
    model = decoder.make(image_size=size, align_corners=settings.align_corners)
    by_batch = mesh.batch_sharding(run.mesh)

    def shapes(*dimensions: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (settings.batch_size, *dimensions), "float32", sharding=by_batch
        )

    images, features = shapes(size, size, 3), shapes(side, side, width)
    variables = [teacher.variables for teacher in teachers]

    @functools.cache
    def needs(plan: memory_plan.Plan) -> tuple[int, int]:
        step = make(run, teachers, plan.rematerialise).steps[0]
        _, teacher_running = step_memory.of_step(teachers[0].apply, variables[0], images)
        _, decoder_running = step_memory.of_step(step, states[0], features, images)
        # In memory: all states and variables, images, targets, and the features of one teacher.
        held = mesh.device_bytes((states, variables, images, images, features))
        return held, max(teacher_running, decoder_running)

    def apply(rematerialise: str) -> TrainApply:
        return models.train_apply(model.clone(rematerialise=rematerialise))

    setting = recomputed("config.information.rematerialise", settings.rematerialise)
    return memory_plan.Step(
        stage,
        "config.information",
        [memory_plan.Plan(name) for name in (RECOMPUTED if setting == AUTO else (setting,))],
        apply,
        states[0].params,
        {},
        mesh.device_bytes((states, variables)),
        needs,
        (side, side, width),
        settings.batch_size // run.mesh.size,
        run.platform,
        scanned=False,
        statistics=states[0].statistics,
        divisible=False,
    )


def require_grid(settings: ConfigDict, side: int) -> None:
    """Raises unless the token grid can be pooled to the grid of the critics' inputs."""
    critics = settings.info_nce
    require(
        not critics.measured or side % critics.grid == 0,
        f"config.information.info_nce.grid must divide the {side} x {side} grid of tokens; got "
        f"{critics.grid}.",
    )


def critic_inputs(settings: ConfigDict) -> info_nce.InputSpec:
    """Returns the inputs of the critics of `config.information`."""
    critics = settings.info_nce
    return info_nce.InputSpec(critics.grid, critics.blocks, critics.noise)


def _feature_extractor(teacher: Teacher) -> mutual_information.FeatureExtractor:
    return lambda images: _features(teacher, teacher.variables, images)


def _features(teacher: Teacher, variables: Variables, images: jax.Array) -> jax.Array:
    """Computes a teacher's features on a grid."""
    patches = teacher.apply(variables, images).patches
    if patches is None:
        raise ValueError(f"The outputs of {teacher.name} have no patch tokens.")
    return decoder.grid(patches)


def _feature_size(run: context.Run, teachers: Sequence[Teacher]) -> tuple[int, int]:
    """Returns the side of the teachers' token grid and the number of features per token."""
    size = run.config.data.image_size
    # One image per device, because batches are sharded.
    images = jax.ShapeDtypeStruct((run.mesh.size, size, size, 3), "float32")
    sizes = [
        jax.eval_shape(functools.partial(_features, teacher), teacher.variables, images).shape[1:]
        for teacher in teachers
    ]
    named = zip(teachers, sizes, strict=True)
    require(
        len(set(sizes)) == 1,
        "Mutual information compares only features of one size, but the teachers have "
        f"{', '.join(f'{teacher.name}: {size}' for teacher, size in named)}; leave models of "
        "another size out of config.models, or out of the rows of the study.",
    )
    side, _, width = sizes[0]
    return side, width


def make_train_transform(run: context.Run) -> Callable[[Any, Batch], jax.Array]:
    """Makes the compiled augmentation of a batch, given the number of the step."""

    def make(*, key: Key) -> Callable[[Any, Batch], jax.Array]:
        return lambda number, batch: run.loader.train_transform(
            random_streams.within(key, number), batch.image
        )

    key = random_streams.key(run.config.seed, "decoder")
    return random_streams.JitWithKey(make, key, out_shardings=mesh.batch_sharding(run.mesh))


def job(run: context.Run, estimators: Estimators) -> training.Job:
    """Makes the training job of all estimators, without their evaluation."""
    settings, transform = run.config.information, make_train_transform(run)
    lockstep = mutual_information.make_lockstep(
        estimators.steps, estimators.features, estimators.teacher_indices
    )

    def make_step(
        first_step: int, rate: training.Rate | None, progress: training.Progress
    ) -> Callable[[Any, Batch], tuple[Any, Metrics]]:
        del rate, progress  # Decoders have a constant learning rate.
        numbers = itertools.count(first_step)
        return lambda states, batch: lockstep(states, transform(np.int32(next(numbers)), batch))

    def operations(states: tuple[state.State, ...], batch: Batch) -> float:
        images = run.batch_shapes(transform, jax.ShapeDtypeStruct((), "int32"), batch)
        features = [run.batch_shapes(extract, images) for extract in estimators.features]
        teacher_operations = sum(flops.count(extract, images) for extract in estimators.features)
        triples = zip(estimators.steps, states, estimators.teacher_indices, strict=True)
        distinct = {step: (state, index) for step, state, index in triples}
        counts = {
            step: flops.count(step, state, features[index], images)
            for step, (state, index) in distinct.items()
        }
        return teacher_operations + sum(counts[step] for step in estimators.steps)

    return training.Job(
        estimators.shapes,
        estimators.first,
        make_step,
        operations,
        settings.batch_size,
        settings.steps,
        milestones(settings),
        lambda step, states: None,
        "decoder",
        set(),
    )


def milestones(settings: ConfigDict) -> tuple[int, ...]:
    """Returns the steps after which decoders are evaluated."""
    steps = np.linspace(0, settings.steps, settings.evaluations + 1)[1:]
    return tuple(round(float(step)) for step in steps)
