"""Data sets that live on the device as uint8, and their batches.

A batch is a function of seed and step alone, so a run resumes from the step number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax.records import Batch


class Split(NamedTuple):
    """Images of one split in memory.

    Attributes:
        image: uint8, (example, height, width, channel).
        label: int32, (example,).
    """

    image: np.ndarray | jax.Array
    label: np.ndarray | jax.Array


def put(split: Split) -> Split:
    """The split, on the device."""
    return Split(jax.device_put(split.image), jax.device_put(split.label))


def train_batches(split: Split, *, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
    """Endless batches for training, from step `first_step` on.

    Every epoch is a new permutation, from (seed, epoch); batches run across the border of two
    epochs, so that all have `batch_size` examples and none is left out.
    """
    examples = len(split.label)
    mask = jnp.ones((batch_size,), bool)
    epoch, order = -1, np.empty((0,), np.int64)
    step = first_step
    while True:
        chosen = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            if position // examples != epoch:
                epoch = position // examples
                order = np.random.default_rng((seed, epoch)).permutation(examples)
            chosen.append(order[position % examples])
        yield _take(split, np.asarray(chosen, np.int32), mask)
        step += 1


def evaluation_batches(split: Split, *, batch_size: int) -> Iterator[Batch]:
    """All examples once, in order; the last batch is filled up with masked ones."""
    examples = len(split.label)
    for start in range(0, examples, batch_size):
        rows = np.arange(start, start + batch_size)
        indices = np.minimum(rows, examples - 1).astype(np.int32)
        yield _take(split, indices, jnp.asarray(rows < examples))


@jax.jit
def _take(split: Split, indices: jax.Array, mask: jax.Array) -> Batch:
    return Batch(split.image[indices], split.label[indices], mask)
