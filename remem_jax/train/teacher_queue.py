"""A queue of the teacher's features of the last images, with which losses compare new ones.

It is a collection of the student's variables during training, beside its statistics: a step updates
it, checkpoints have it, and evaluation and export use the student without it. It holds the features
of whole batches in their order, so that it does not depend on the number of devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import losses
from remem_jax.records import Outputs, Params, Variables

NAME = "teacher_queue"
# Number of entries, about a quarter to a half of the images, by the number of images below which it
# applies.
# Source: LightlyTrain, https://github.com/lightly-ai/lightly-train, distillationv3.
_ENTRIES = {
    **{50: 16, 100: 32, 250: 64, 500: 128, 1_000: 256, 2_000: 512},
    **{4_000: 1_024, 10_000: 2_048, 20_000: 4_096},
}
_MOST = 8_192


def entries(images: int) -> int:
    """Returns the number of entries of the queue, for a number of training images."""
    return next((size for bound, size in _ENTRIES.items() if images < bound), _MOST)


def add(variables: Variables, size: int, width: int) -> Variables:
    """Adds an empty queue, of zeros, to the variables of a student.

    Args:
        variables: Variables of the student.
        size: Number of its entries.
        width: Number of features of an entry.
    """
    return {**variables, NAME: {"pooled": jnp.zeros((size, width), jnp.float32)}}


def without(statistics: Params) -> Params:
    """Returns the statistics of a student without the queue, if there is one."""
    return {name: tree for name, tree in statistics.items() if name != NAME}


def push(statistics: Params, targets: Outputs | None) -> tuple[Outputs | None, Params]:
    """Puts a batch of the teacher's `pooled` features into the queue, if there is one.

    Args:
        statistics: All variables of the student but its parameters.
        targets: The teacher's outputs.

    Returns:
        The teacher's outputs with the new queue, which has this batch, and the collection of the
        queue; {} if there is none.
    """
    if targets is None or targets.pooled is None or NAME not in statistics:
        return targets, {}
    queue = pushed(statistics[NAME]["pooled"], targets.pooled)
    return targets._replace(queue=queue), {NAME: {"pooled": queue}}


def pushed(
    queue: Float[Array, "entry feature"], features: Float[Array, "batch feature"]
) -> Float[Array, "entry feature"]:
    """Returns the queue with normalised features before its entries, of which the last drop out.

    Of a batch that is larger than the queue, it has the first images.
    """
    new = losses.normalised(jax.lax.stop_gradient(features).astype(jnp.float32))
    return jnp.concatenate([new, queue])[: queue.shape[0]]
