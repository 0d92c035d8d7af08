"""Types that several packages share."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

from remem_jax.random_streams import Stage

Params = Mapping[str, Any]  # Nested dict of arrays, under the names of the checkpoint files.
Variables = Mapping[str, Any]  # {"params": Params} and, for some models, {"batch_stats": ...}.
Metrics = Mapping[str, Any]  # Name -> scalar, or one value per student.
Key = jax.Array
# Class indices, -1 without a label; or shares of all classes, all 0 without a label.
Labels = Int[Array, " batch"] | Float[Array, "batch classes"]

# (params, statistics, images, dropout key) -> (logits, new statistics), in training mode.
TrainApply = Callable[[Params, Params, Array, Key], tuple[Array, Params]]
# (variables, images) -> logits, in evaluation mode.
Apply = Callable[[Variables, Array], Array]
# The same with all outputs that losses compare: a student in training mode, a teacher in
# evaluation mode.
StudentApply = Callable[[Params, Params, Array, Key], tuple["Outputs", Params]]
TeacherApply = Callable[[Variables, Array], "Outputs"]
# (key, uint8 images) -> model inputs. The key is that of a stage and a training step; each random
# transform has its own stream within it. Evaluation does not use the key.
Transform = Callable[[Key, Array], Array]


class Batch(NamedTuple):
    """Stored images and their labels.

    Attributes:
        image: uint8 images at source size; a `Transform` converts them to model inputs.
        label: Class indices; -1 for an image without a label, which only students with a teacher
            get.
        mask: False for examples that only pad the last batch.
    """

    image: Shaped[Array, "batch height width channel"]
    label: Int[Array, " batch"]
    mask: Bool[Array, " batch"]


Batches = Generator[Batch, None, None]


class Outputs(NamedTuple):
    """Outputs of a teacher or a student for a batch; features only if a loss compares them.

    Attributes:
        logits: Unnormalised log-probabilities.
        patches: A teacher's patch tokens after its last norm, row by row, or a student's
            prediction of them. None if no loss compares them.
        cls: The same for the [CLS] token.
        pooled: The same for one vector of an image, which the teacher's head pools.
        layers: The same for the patch tokens after several blocks of the teacher, before its last
            norm; a student predicts the last ones, as many as it has stages.
        queue: Of the teacher, `pooled` of its last images, each of L2 norm 1, the newest first, and
            zeros where there have been fewer images.
    """

    logits: Float[Array, "batch classes"]
    patches: Float[Array, "batch token feature"] | None = None
    cls: Float[Array, "batch feature"] | None = None
    pooled: Float[Array, "batch feature"] | None = None
    layers: tuple[Float[Array, "batch token feature"], ...] | None = None
    queue: Float[Array, "entry feature"] | None = None


@runtime_checkable  # For the tests, which check types at run time.
class TrainBatches(Protocol):
    """Yields training batches."""

    def __call__(self, batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        """Yields batches without end, starting at a step.

        Args:
            batch_size: Global batch size.
            first_step: Step of the first batch.
            stage: Name of the stage. Each stage has its own order and augmentation.

        Returns:
            Batches that depend only on the seed, the stage and the step.
        """
        ...


class DataLoader(NamedTuple):
    """Batches of a data set, and the transforms that convert them to model inputs.

    Attributes:
        kind: "resident" or "streamed".
        train: See `TrainBatches`; images with labels.
        distillation: The same with unlabelled images, for students with a teacher. Without any, it
            is `train`.
        evaluation: (split, batch size) -> all examples once, in order; the padding of the last
            batch is masked.
        train_transform: Augments training images.
        evaluation_transform: Converts evaluation images to model inputs.
        refit: The same loader, except that training batches have the images of validation, too;
            None if there are no such images.
    """

    kind: str
    train: TrainBatches
    distillation: TrainBatches
    evaluation: Callable[[str, int], Batches]
    train_transform: Transform
    evaluation_transform: Transform
    refit: "DataLoader | None" = None


class Hyperparameters(NamedTuple):
    """Hyperparameters of one student of a grid, as traced values.

    Attributes:
        learning_rate: Peak learning rate.
        temperature: T of the distillation loss.
        weight: Weight of the distillation loss; see `train.student_losses`.
        seed: Seed of the student's initial parameters and dropout.
        progress: Fraction of the training that is done after a step, which the steps in lockstep
            set; a grid does not have it.
    """

    learning_rate: Float[Array, ""] | float
    temperature: Float[Array, ""] | float
    weight: Float[Array, ""] | float
    seed: Int[Array, ""] | int
    progress: Float[Array, ""] | float = 1.0


HYPERPARAMETERS = tuple(name for name in Hyperparameters._fields if name != "progress")
