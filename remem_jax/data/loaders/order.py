"""The order of examples: a function of seed, stage and position alone.

So a run resumes from its step number, and the number of hosts does not change the batches. With
unlabelled images, it depends on the size of the batches too.
"""

import dataclasses
import functools

import numpy as np

from remem_jax import random_streams
from remem_jax.data.sources import NO_LABEL
from remem_jax.random_streams import Stage, Use


@dataclasses.dataclass(frozen=True, eq=False)  # Equal only if identical, so it can be hashed.
class TrainOrder:
    """The infinite sequence of training examples.

    An epoch has as many positions as there are examples. Batches cross the boundaries of epochs,
    so that all are full.

    Without balance, every epoch is a new permutation of the examples. With balance, an example of
    a class of n examples is drawn with a probability proportional to n ** -balance. An epoch is a
    systematic sample: each class, and each example, occurs as often as expected, rounded up or
    down. Which examples are rounded up is random, and differs between epochs.

    Decoders of `config.information` measure what features tell about the images as they are, so
    their order is never balanced.

    Attributes:
        labels: Class of each example.
        balance: From 0, each example once per epoch, to 1, all classes equally often.
        seed: Seed of the run.
        use: Name of the random stream.
    """

    labels: np.ndarray
    balance: float
    seed: int
    use: Use = "order"

    def rows(self, positions: np.ndarray, *, stage: Stage) -> np.ndarray:
        """Returns the rows at these positions of the sequence.

        Args:
            positions: Positions from 0; example i of the batch of step s has
                `s * batch_size + i`.
            stage: Stage of the run; each has an order of its own.

        Returns:
            One row per position, int64, from 0 to the number of examples - 1.
        """
        epochs, offsets = np.divmod(positions, len(self.labels))
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            rows[in_epoch] = _epoch(self, stage, int(epoch))[offsets[in_epoch]]
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class PartlyLabelledOrder:
    """The sequence of labelled and unlabelled training images, batch by batch.

    Each batch has the labelled images first, so that Mixup and CutMix, which mix neighbours, mix
    few of them with images without a label. The number of unlabelled images in the first n batches
    is the share of all their images, rounded down. Labelled images have the sequence that they
    have without the others; the unlabelled ones have one of their own, each once per epoch.

    Attributes:
        labelled: Order of the labelled images.
        unlabelled: Order of the unlabelled images.
        share: Share of unlabelled images in a batch; from 0 to 1.
        batch_size: Number of images in a batch.
    """

    labelled: TrainOrder
    unlabelled: TrainOrder
    share: float
    batch_size: int

    def rows(self, positions: np.ndarray, *, stage: Stage) -> np.ndarray:
        """Returns the rows at these positions of the sequence.

        Args:
            positions: As in `TrainOrder.rows`.
            stage: As in `TrainOrder.rows`.

        Returns:
            One row per position, int64: those of the labelled images, or their number plus those
            of the unlabelled images.
        """
        steps, places = np.divmod(positions, self.batch_size)
        before, after = (self._unlabelled_before(step) for step in (steps, steps + 1))
        first = self.batch_size - (after - before)  # Place of the first unlabelled image.
        has_label = places < first
        rows = np.empty(len(positions), np.int64)
        in_labelled = (positions - before)[has_label]
        rows[has_label] = self.labelled.rows(in_labelled, stage=stage)
        in_unlabelled = (before + places - first)[~has_label]
        rows[~has_label] = self.unlabelled.rows(in_unlabelled, stage=stage)
        rows[~has_label] += len(self.labelled.labels)
        return rows

    def _unlabelled_before(self, steps: np.ndarray) -> np.ndarray:
        """Returns the number of unlabelled images in the batches before these steps."""
        return np.floor(steps * self.batch_size * self.share).astype(np.int64)


def partly_labelled(
    labelled: TrainOrder, unlabelled: int, share: float, batch_size: int
) -> PartlyLabelledOrder:
    """Adds unlabelled images to the order of labelled ones; see `PartlyLabelledOrder`.

    Args:
        labelled: Order of the labelled images.
        unlabelled: Number of unlabelled images.
        share: Share of them in a batch.
        batch_size: Number of images in a batch.
    """
    labels = np.full(unlabelled, NO_LABEL, np.int32)
    others = TrainOrder(labels, balance=0.0, seed=labelled.seed, use="unlabelled")
    return PartlyLabelledOrder(labelled, others, share, batch_size)


def evaluation_rows(positions: np.ndarray, *, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows at these positions of an evaluation, and whether they count.

    The last batch is padded with the last example, which does not count.
    """
    return np.minimum(positions, examples - 1), positions < examples


@functools.lru_cache(maxsize=8)  # Threads request single examples.
def _epoch(order: TrainOrder, stage: Stage, epoch: int) -> np.ndarray:
    """Returns the rows of an epoch."""
    rng = random_streams.generator(order.seed, stage, order.use, epoch)
    permutation = rng.permutation(len(order.labels))
    if not order.balance or stage == "decoder":
        return permutation
    return rng.permutation(_balanced(permutation, order.labels, order.balance, rng.random()))


def _balanced(
    permutation: np.ndarray, labels: np.ndarray, balance: float, start: float
) -> np.ndarray:
    """Draws a systematic sample of examples, as many as there are.

    Args:
        permutation: The examples in random order, which decides which of a class are drawn.
        labels: Class of each example.
        balance: See `TrainOrder`.
        start: Uniform draw in [0, 1): the offset of the sample.
    """
    rows = permutation[np.argsort(labels[permutation], kind="stable")]
    counts = np.bincount(labels)
    weights = counts[labels[rows]].astype(np.float64) ** -balance
    ends = np.cumsum(weights)
    points = (np.arange(len(rows)) + start) * (ends[-1] / len(rows))
    return rows[np.searchsorted(ends[:-1], points, side="right")]
