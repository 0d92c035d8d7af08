"""Which example stands where: a function of seed and position alone.

So a run resumes from its step number, and any number of hosts sees the same batches.
"""

import functools

import numpy as np


def train_rows(positions: np.ndarray, *, examples: int, seed: int) -> np.ndarray:
    """Which examples stand at these positions of the endless row of training examples.

    Every epoch is a new permutation, from (seed, epoch); batches run across the border of two
    epochs, so that all are full and no example is left out.

    Args:
        positions: From 0 on; that of example i of the batch of step s is `s * batch_size + i`.
        examples: How many there are.
        seed: Of the run.

    Returns:
        One row per position, int64, from 0 to `examples` - 1.
    """
    epochs, places = np.divmod(positions, examples)
    rows = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(examples, seed, int(epoch))[places[here]]
    return rows


def evaluation_rows(positions: np.ndarray, *, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples stand at these positions of an evaluation, and whether they count.

    What fills up the last batch repeats the last example and does not count.
    """
    return np.minimum(positions, examples - 1), positions < examples


@functools.lru_cache(maxsize=4)  # Threads ask for one example at a time.
def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(examples)
