"""Types that pass between the floors of the house."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

from remem_jax.random_streams import Stage

Params = Mapping[str, Any]  # Nested dict of arrays, under the names of the checkpoint files.
Variables = Mapping[str, Any]  # {"params": Params} and, for some models, {"batch_stats": ...}.
Metrics = Mapping[str, Any]  # Name -> scalar, or one value per student.
Key = jax.Array
# Indices of the classes, or shares of all classes.
Labels = Int[Array, " batch"] | Float[Array, "batch classes"]

# (params, statistics, images, dropout key) -> (logits, new statistics), in training mode.
TrainApply = Callable[[Params, Params, Array, Key], tuple[Array, Params]]
# (variables, images) -> logits, in evaluation mode.
Apply = Callable[[Variables, Array], Array]
# The same of what students learn from: of a student in training, and of a teacher.
StudentApply = Callable[[Params, Params, Array, Key], tuple["Outputs", Params]]
TeacherApply = Callable[[Variables, Array], "Outputs"]
# (key, uint8 images) -> float images as the model takes them. The key is that of a stage and a step
# of training, within which each random transform has a stream of its own; evaluation uses none.
Transform = Callable[[Key, Array], Array]


class Batch(NamedTuple):
    """Images as they are stored, and their labels.

    Attributes:
        image: uint8 at source size; a `Transform` makes them what the model takes.
        label: Index of the class.
        mask: False where an example only fills up the last batch.
    """

    image: Shaped[Array, "batch height width channel"]
    label: Int[Array, " batch"]
    mask: Bool[Array, " batch"]


Batches = Generator[Batch, None, None]


class Outputs(NamedTuple):
    """What a teacher says of a batch, or a student; features only where a loss compares them.

    Attributes:
        logits: Unnormalised log-probabilities.
        patches: A teacher's tokens of the patches after its last norm, row by row; a student's
            prediction of them. None where nothing compares them.
        cls: The same of the [CLS] token.
    """

    logits: Float[Array, "batch classes"]
    patches: Float[Array, "batch token feature"] | None = None
    cls: Float[Array, "batch feature"] | None = None


class TrainBatches(Protocol):
    """Gives the batches of training."""

    def __call__(self, batch_size: int, first_step: int, *, stage: Stage) -> Batches:
        """Batches without end, from a step on.

        Args:
            batch_size: Examples in a (global) batch.
            first_step: The step whose batch is the first.
            stage: What is trained. Each stage has its own order and its own augmentation.

        Returns:
            A function of the seed, the stage and the step.
        """
        ...


class DataLoader(NamedTuple):
    """How the batches of a data set come, and what the models see of them.

    Attributes:
        kind: "resident" or "streamed".
        train: See `TrainBatches`.
        evaluation: (split, batch size) -> all examples once, in order; what fills up the last
            batch is masked.
        train_transform: Makes what models see of a batch of training.
        evaluation_transform: The same of a batch of evaluation.
    """

    kind: str
    train: TrainBatches
    evaluation: Callable[[str, int], Batches]
    train_transform: Transform
    evaluation_transform: Transform


class Hyperparameters(NamedTuple):
    """What tells the students of a grid apart, as traced values.

    Attributes:
        learning_rate: Peak of the schedule.
        temperature: T of the distillation loss.
        weight: Of the distillation loss; see `train.student_losses`.
        seed: Of what a student draws for itself: its initial parameters and its dropout.
    """

    learning_rate: Float[Array, ""] | float
    temperature: Float[Array, ""] | float
    weight: Float[Array, ""] | float
    seed: Int[Array, ""] | int
