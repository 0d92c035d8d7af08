"""The order of examples: a function of seed, stage and position alone.

So a run resumes from its step number, and the number of hosts does not change the batches.
"""

import functools

import numpy as np

from remem_jax import random_streams
from remem_jax.random_streams import Stage


def train_rows(positions: np.ndarray, *, examples: int, seed: int, stage: Stage) -> np.ndarray:
    """Returns the rows at these positions of the infinite sequence of training examples.

    Every epoch is a new permutation; batches cross the boundaries of epochs, so that all are full
    and no example is dropped.

    Args:
        positions: Positions from 0; example i of the batch of step s has `s * batch_size + i`.
        examples: Number of examples.
        seed: Seed of the run.
        stage: Stage of the run; each has permutations of its own.

    Returns:
        One row per position, int64, from 0 to `examples` - 1.
    """
    epochs, offsets = np.divmod(positions, examples)
    rows = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        permutation = _permutation(examples, seed, stage, int(epoch))
        rows[in_epoch] = permutation[offsets[in_epoch]]
    return rows


def evaluation_rows(positions: np.ndarray, *, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows at these positions of an evaluation, and whether they count.

    The last batch is padded with the last example, which does not count.
    """
    return np.minimum(positions, examples - 1), positions < examples


@functools.lru_cache(maxsize=4)  # Threads request single examples.
def _permutation(examples: int, seed: int, stage: Stage, epoch: int) -> np.ndarray:
    return random_streams.generator(seed, stage, "order", epoch).permutation(examples)
