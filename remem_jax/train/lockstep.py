"""Many students on one pass of the teacher.

The images are cropped and mixed once per batch, and the teacher's outputs are computed once. Then
one compiled student step is called once per student, with images and targets already on the device
and the student's hyperparameters as traced values. Students trained together equal students
trained alone, whatever their losses and seeds. (vmap over the students would turn their
convolutions into grouped ones, which are 2 to 25 times slower.)

Augmentation and the teacher's pass are two compiled functions: if they were compiled together, XLA
might round the images differently, and students that learn from stored outputs would not be equal
to the last bit.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from remem_jax import random_streams
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Batch, Hyperparameters, Key, Labels, Metrics, Outputs, Transform
from remem_jax.train import finite
from remem_jax.train.state import TrainState
from remem_jax.train.steps import StudentStep, augment_and_mix

States = tuple[TrainState, ...]
# Metrics of a student whose parameters are not finite.
_NOT_FINITE: Metrics = {
    "loss": np.float32("nan"),
    "fault": np.int32(1 + finite.PARTS.index("parameters")),
}


class AugmentedBatch(NamedTuple):
    """A batch after augmentation, as teacher and students take it.

    Attributes:
        images: Model inputs.
        labels: Class indices, or shares of all classes if images are mixed; see `records.Labels`.
    """

    images: Float[Array, "batch height width channel"]
    labels: Labels


StepNumber = Int[Array, ""] | np.int32
Augment = Callable[[StepNumber, Batch], AugmentedBatch]
# (step number, images) -> the teacher's outputs; None for students without a teacher.
GetTargets = Callable[[int, Array], Outputs | None]


def make_augment(transform: Transform, *, classes: int, key: Key, mixing: Mixing) -> Augment:
    """Builds the augmentation that teacher and students share.

    Args:
        transform: Converts stored images to model inputs.
        classes: Number of classes.
        key: Key of the stage; see `random_streams`.
        mixing: See `steps.augment_and_mix`; teacher and students get the same mixtures.

    Returns:
        A pure function `(step number, batch) -> augmented batch`.
    """

    def augment(number: StepNumber, batch: Batch) -> AugmentedBatch:
        step_key = random_streams.within(key, number)
        images, labels = augment_and_mix(transform, step_key, batch, mixing)
        return AugmentedBatch(images, labels(classes))

    return augment


def make_step(
    augment: Augment,
    get_targets: GetTargets,
    students: Sequence[tuple[StudentStep, Hyperparameters]],
    *,
    first_step: int,
    lost: Collection[int] = (),
    rate: Callable[[int], float] | None = None,
    progress: Callable[[int], float] | None = None,
) -> Callable[[States, Batch], tuple[States, Metrics]]:
    """Builds the step of all students of a grid.

    Args:
        augment: From `make_augment`, jitted.
        get_targets: Returns the teacher's outputs for the images of a step, computed or stored;
            None if the students have no teacher.
        students: For each student the step of its loss (from `steps.make_student_step`, jitted
            once for all students with this loss) and its hyperparameters.
        first_step: Number of steps that the students have done.
        lost: Indices of students whose states are no longer finite, which are not stepped.
            Additions take effect at the next step.
        rate: Returns a factor of all learning rates, given the number of steps done; None is 1.
        progress: Returns the fraction of the training that is done after the next step, given the
            number of steps done; None is 1.

    Returns:
        A step over the tuple of the students' states, which are all at the same step. Do not jit
        it; call it once for every step. Its metrics are lists with one value per student; those of
        a lost student are what a step from its state would return.
    """
    numbers = itertools.count(first_step)

    def step(states: States, batch: Batch) -> tuple[States, Metrics]:
        number = next(numbers)
        augmented = augment(np.int32(number), batch)
        targets = get_targets(number, augmented.images)
        factor = 1.0 if rate is None else rate(number)
        done = 1.0 if progress is None else progress(number)
        stepped = [
            (state, _NOT_FINITE)
            if i in lost
            else student_step(state, *augmented, targets, _at_step(hyperparameters, factor, done))
            for i, (state, (student_step, hyperparameters)) in enumerate(
                zip(states, students, strict=True)
            )
        ]
        _, first = stepped[0]
        return tuple(state for state, _ in stepped), {
            name: [metrics[name] for _, metrics in stepped] for name in first
        }

    return step


def _at_step(hyperparameters: Hyperparameters, factor: float, done: float) -> Hyperparameters:
    learning_rate = hyperparameters.learning_rate * factor
    return hyperparameters._replace(learning_rate=learning_rate, progress=done)
