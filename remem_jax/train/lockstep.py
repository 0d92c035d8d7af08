"""Many students on one teacher pass.

The images are cropped and mixed once per batch, and the teacher answers once; then one compiled
student step is called once per student, with images and answers already on the device and the
student's settings as traced values. Students trained together equal students trained alone,
whatever their losses and seeds. (vmap over the students would turn their convolutions into grouped
ones, which are 2 to 25 times slower.)

Augmentation and the teacher's pass are two compiled functions: compiled together, XLA may round
the images otherwise, and students that learn from stored outputs would not be the same to the last
bit.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from remem_jax import random_streams
from remem_jax.records import Batch, Hyperparameters, Key, Labels, Metrics, Outputs, Transform
from remem_jax.train import finite
from remem_jax.train.state import State
from remem_jax.train.steps import StudentStep, augment_and_mix

States = tuple[State, ...]
# Metrics of a student whose parameters are not finite.
_LOST: Metrics = {
    "loss": np.float32("nan"),
    "fault": np.int32(1 + finite.PARTS.index("parameters")),
}


class Seen(NamedTuple):
    """What teacher and students see of a batch.

    Attributes:
        images: As the models take them.
        labels: Indices of the classes, or shares of them where images are mixed.
    """

    images: Float[Array, "batch height width channel"]
    labels: Labels


Number = Int[Array, ""] | np.int32  # Of a step.
Augment = Callable[[Number, Batch], Seen]
# (number of the step, images) -> the teacher's outputs; None for students without a teacher.
Teach = Callable[[int, Array], Outputs | None]


def make_augment(transform: Transform, *, classes: int, key: Key, mixup: float) -> Augment:
    """Builds the pass that makes of a batch what all models see of it.

    Args:
        transform: Makes model inputs of stored images.
        classes: Number of classes.
        key: Of the stage; see `random_streams`.
        mixup: See `steps.augment_and_mix`; teacher and students see the same mixtures.

    Returns:
        A pure function `(step, batch) -> seen`.
    """

    def augment(step: Number, batch: Batch) -> Seen:
        images, labels = augment_and_mix(transform, random_streams.within(key, step), batch, mixup)
        return Seen(images, labels(classes))

    return augment


def make_step(
    augment: Augment,
    teach: Teach,
    students: Sequence[tuple[StudentStep, Hyperparameters]],
    *,
    first_step: int,
    lost: Collection[int] = (),
) -> Callable[[States, Batch], tuple[States, Metrics]]:
    """Builds the step of all students of a grid.

    Args:
        augment: From `make_augment`, jitted.
        teach: The teacher's answers to the images of a step: by its jitted evaluation, or as they
            are known; None where the students have no teacher.
        students: For each the step of its loss, from `steps.make_student_step`, jitted once for
            all that have it, and its settings.
        first_step: Steps that the students have done.
        lost: Numbers of students whose states are not finite any more. They are stepped no more;
            what is added later counts from the next step on.

    Returns:
        A step over the tuple of the students' states, all at the same step; not to be jitted, and
        to be called once for every step. Its metrics are lists of one value per student: of a
        lost one, what a step from its state would give.
    """
    numbers = itertools.count(first_step)

    def step(states: States, batch: Batch) -> tuple[States, Metrics]:
        number = next(numbers)
        seen = augment(np.int32(number), batch)
        answer = teach(number, seen.images)
        taught = [
            (state, _LOST) if i in lost else student_step(state, *seen, answer, own)
            for i, (state, (student_step, own)) in enumerate(zip(states, students, strict=True))
        ]
        _, first = taught[0]
        return tuple(state for state, _ in taught), {
            name: [metrics[name] for _, metrics in taught] for name in first
        }

    return step
