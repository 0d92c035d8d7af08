"""Decoders and critics that read the features of teachers, trained on one pass of the images."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax import mesh, models
from remem_jax.analysis import info_nce, mutual_information
from remem_jax.checks import require
from remem_jax.models import decoder
from remem_jax.records import Batch, Metrics, TeacherApply, Variables
from remem_jax.train import flops, state
from remem_jax.workflow import parts


class Teacher(NamedTuple):
    """A teacher whose features are read.

    Attributes:
        name: In errors.
        apply: It in evaluation mode, with its patches, jitted.
        variables: Of it.
    """

    name: str
    apply: TeacherApply
    variables: Variables


class Readers(NamedTuple):
    """What reads the features of some teachers: decoders and critics, one of each per seed.

    Attributes:
        reads: For each reader the number of its teacher; decoders come first.
        decoders: How many of them are decoders.
        steps: The compiled step of each reader.
        shapes: Of the states of all, as they lie on the devices.
        first: Makes these states at step 0.
        teach: Features of images, by teacher.
    """

    reads: list[int]
    decoders: int
    steps: list[Any]
    shapes: tuple[state.State, ...]
    first: Callable[[], tuple[state.State, ...]]
    teach: list[mutual_information.Teach]


def make(run: parts.Run, teachers: Sequence[Teacher]) -> Readers:
    """Makes the readers of `config.information`.

    Raises:
        SettingError: If the teachers' features are of different sizes.
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
    init = decoder.make_init(model, side=side, width=width)
    step = mutual_information.make_decoder_step(models.train_apply(model), tx)
    own = reading(settings)
    require_grid(settings, side)
    own_critic = functools.partial(
        info_nce.init,
        reading=own,
        width=width,
        hidden=settings.info_nce.hidden,
        embedding=settings.info_nce.embedding,
    )
    critic_step = info_nce.make_critic_step(tx, own, key=key_of(run, "noise"))
    keys = [jax.random.fold_in(key_of(run, "readers"), seed) for seed in settings.seeds]
    critics = len(keys) if settings.info_nce.measured else 0

    first_decoder = run.jit_create(lambda key: state.create(init(key), tx), keys[0])
    first_critic = run.jit_create(lambda key: state.create(own_critic(key), tx), keys[0])

    def first() -> tuple[state.State, ...]:
        decoders = [first_decoder(key) for _ in teachers for key in keys]
        return (*decoders, *(first_critic(key) for _ in teachers for key in keys[:critics]))

    of_decoder, of_critic = (
        run.shapes(jax.eval_shape(one, keys[0])) for one in (first_decoder, first_critic)
    )
    jitted = run.jit_step(step, of_decoder), run.jit_step(critic_step, of_critic)
    numbers = range(len(teachers))
    of_decoders = [number for number in numbers for _ in keys]
    of_critics = [number for number in numbers for _ in range(critics)]
    return Readers(
        [*of_decoders, *of_critics],
        len(of_decoders),
        [jitted[0]] * len(of_decoders) + [jitted[1]] * len(of_critics),
        (*[of_decoder] * len(of_decoders), *[of_critic] * len(of_critics)),
        first,
        [_teach(one) for one in teachers],
    )


def require_grid(settings: ConfigDict, side: int) -> None:
    """Raises unless a grid of tokens of this side divides into what critics are given."""
    own = settings.info_nce
    require(
        not own.measured or side % own.grid == 0,
        f"config.information.info_nce.grid must divide the {side} x {side} grid of tokens; got "
        f"{own.grid}.",
    )


def reading(settings: ConfigDict) -> info_nce.Reading:
    """What the critics of `config.information` are given."""
    own = settings.info_nce
    return info_nce.Reading(own.grid, own.blocks, own.noise)


def _teach(teacher: Teacher) -> mutual_information.Teach:
    def features(images: jax.Array) -> jax.Array:
        patches = teacher.apply(teacher.variables, images).patches
        if patches is None:
            raise ValueError(f"{teacher.name} does not give its patches.")
        return decoder.grid(patches)

    return features


def _feature_size(run: parts.Run, teachers: Sequence[Teacher]) -> tuple[int, int]:
    """Side and width of the teachers' features."""
    size = run.config.data.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    found = [jax.eval_shape(_teach(one), images).shape[1:] for one in teachers]
    named = zip(teachers, found, strict=True)
    require(
        len(set(found)) == 1,
        "Mutual information compares features of one size only, and the teachers have "
        f"{', '.join(f'{one.name}: {shape}' for one, shape in named)}; leave out of "
        "config.models, or of the rows of the study, what is of another size.",
    )
    side, _, width = found[0]
    return side, width


def key_of(run: parts.Run, use: str) -> jax.Array:
    """Keys of their own for what the parts of a measurement draw."""
    number = ("views", "readers", "noise").index(use)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(run.config.seed), 3), number)


def job(run: parts.Run, readers: Readers) -> parts.Job:
    """The training of the readers, but for what is looked at on the way."""
    settings = run.config.information
    view_key = key_of(run, "views")

    @functools.partial(jax.jit, out_shardings=mesh.batch_sharding(run.mesh))
    def view(number: jax.Array, batch: Batch) -> jax.Array:
        return run.feed.train_view(jax.random.fold_in(view_key, number), batch.image)

    lockstep = mutual_information.make_lockstep(readers.steps, readers.teach, readers.reads)

    def make_step(first_step: int) -> Callable[[Any, Batch], tuple[Any, Metrics]]:
        numbers = itertools.count(first_step)
        return lambda states, batch: lockstep(states, view(np.int32(next(numbers)), batch))

    def operations(states: tuple[state.State, ...], batch: Batch) -> float:
        images = jax.eval_shape(view, jax.ShapeDtypeStruct((), "int32"), batch)
        features = [jax.eval_shape(teach, images) for teach in readers.teach]
        of_teachers = sum(flops.count(teach, images) for teach in readers.teach)
        readings = zip(readers.steps, states, readers.reads, strict=True)
        kinds = {step: (now, read) for step, now, read in readings}
        counts = {
            step: flops.count(step, now, features[read], images)
            for step, (now, read) in kinds.items()
        }
        return of_teachers + sum(counts[step] for step in readers.steps)

    return parts.Job(
        readers.shapes,
        readers.first,
        make_step,
        operations,
        settings.batch_size,
        settings.steps,
        milestones(settings),
        lambda at, now: None,
        set(),
    )


def milestones(settings: ConfigDict) -> tuple[int, ...]:
    """After which steps the readers are evaluated."""
    every = np.linspace(0, settings.steps, settings.evaluations + 1)[1:]
    return tuple(round(float(at)) for at in every)
