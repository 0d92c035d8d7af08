"""Which example stands where: a function of seed, stage and position alone.

So a run resumes from its step number, and any number of hosts sees the same batches.
"""

import functools

import numpy as np

from remem_jax import random_streams
from remem_jax.random_streams import Stage


def train_rows(positions: np.ndarray, *, examples: int, seed: int, stage: Stage) -> np.ndarray:
    """Which examples stand at these positions of the endless row of training examples.

    Every epoch is a new permutation; batches run across the border of two epochs, so that all are
    full and no example is left out.

    Args:
        positions: From 0 on; that of example i of the batch of step s is `s * batch_size + i`.
        examples: How many there are.
        seed: Of the run.
        stage: What is trained on them; each stage has its own permutations.

    Returns:
        One row per position, int64, from 0 to `examples` - 1.
    """
    epochs, places = np.divmod(positions, examples)
    rows = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(examples, seed, stage, int(epoch))[places[here]]
    return rows


def evaluation_rows(positions: np.ndarray, *, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples stand at these positions of an evaluation, and whether they count.

    What fills up the last batch repeats the last example and does not count.
    """
    return np.minimum(positions, examples - 1), positions < examples


@functools.lru_cache(maxsize=4)  # Threads ask for one example at a time.
def _permutation(examples: int, seed: int, stage: Stage, epoch: int) -> np.ndarray:
    return random_streams.generator(seed, stage, "order", epoch).permutation(examples)
