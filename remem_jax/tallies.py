"""Metrics of a classifier from counts that stay on the device; exact for any batches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remem_jax import losses
from remem_jax.data import registry
from remem_jax.records import Batch

BINS = 15  # Bins of the calibration error, as in section 2 of its paper.
TOP = 5

Logits = Float[Array, "batch classes"]


class Sum(NamedTuple):
    """Compensated sums over batches, as accurate as float64, which JAX disables by default.

    Attributes:
        total: The sums in float32.
        lost: Their accumulated rounding errors.
    """

    total: Float[Array, "*shape"]
    lost: Float[Array, "*shape"]


class Tally(NamedTuple):
    """Counts over the batches so far.

    Attributes:
        examples: Number of examples of each class.
        right: Number of correctly classified examples of each class.
        top5: Number of examples whose class is among the five most likely.
        gaps: For each bin of confidence, the number of correctly classified examples minus the sum
            of the confidences.
        loss: Cross-entropy, summed over the examples.
        agreed: Number of examples for which the teacher predicts the same class; None without a
            teacher.
        confusion: Numbers of examples by true and predicted class; None if not requested.
    """

    examples: Int[Array, " classes"]
    right: Int[Array, " classes"]
    top5: Int[Array, ""]
    gaps: Sum
    loss: Sum
    agreed: Int[Array, ""] | None
    confusion: Int[Array, "classes classes"] | None


Count = Callable[[Tally, Array, Batch, Array | None], Tally]


def init_tally(classes: int, *, agreement: bool, confusion: bool) -> Tally:
    """Returns the tally of no examples.

    Args:
        classes: Number of classes.
        agreement: Whether to count agreement with a teacher.
        confusion: Whether to count every pair of classes: 4 bytes for each, which is 100 MB for
            5,089 classes.
    """

    # Each count needs its own buffer, as they are donated when the next batch is added.
    def no_counts(*shape: int) -> Int[Array, "*shape"]:
        return jnp.zeros(shape, jnp.int32)

    def empty_sum(*shape: int) -> Sum:
        return Sum(jnp.zeros(shape), jnp.zeros(shape))

    return Tally(
        examples=no_counts(classes),
        right=no_counts(classes),
        top5=no_counts(),
        gaps=empty_sum(BINS),
        loss=empty_sum(),
        agreed=no_counts() if agreement else None,
        confusion=no_counts(classes, classes) if confusion else None,
    )


def count(
    tally: Tally, logits: Logits, batch: Batch, teacher_logits: Logits | None = None
) -> Tally:
    """Adds a batch to a tally, without its masked examples.

    A pure function. The caller jits it and donates the tally. A batch may be sharded over devices
    and hosts; the tally is the same on all of them. If logits are equal, the class with the lowest
    index is the prediction.

    Args:
        tally: Tally of the previous batches.
        logits: Logits of the model.
        batch: The batch.
        teacher_logits: Logits of the teacher, if the tally counts agreement.

    Raises:
        ValueError: If the tally counts agreement and there are no teacher logits, or vice versa.
    """
    if (tally.agreed is None) != (teacher_logits is None):
        raise ValueError("Agreement is counted with a teacher's logits, and only with them.")
    logits = logits.astype(jnp.float32)
    predicted = jnp.argmax(logits, axis=-1)
    right = predicted == batch.label
    _, likeliest = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))
    in_top5 = jnp.any(likeliest == batch.label[:, None], axis=-1)
    loss = jax.vmap(lambda row, label: losses.cross_entropy(row[None], label[None]))
    agreed, confusion = tally.agreed, tally.confusion
    if agreed is not None and teacher_logits is not None:
        agreed += _number(batch.mask & (predicted == jnp.argmax(teacher_logits, axis=-1)))
    if confusion is not None:
        confusion = confusion.at[batch.label, predicted].add(batch.mask.astype(jnp.int32))
    return Tally(
        examples=tally.examples.at[batch.label].add(batch.mask.astype(jnp.int32)),
        right=tally.right.at[batch.label].add((batch.mask & right).astype(jnp.int32)),
        top5=tally.top5 + _number(batch.mask & in_top5),
        gaps=_add(tally.gaps, _gaps(logits, right, batch.mask)),
        loss=_add(tally.loss, jnp.sum(jnp.where(batch.mask, loss(logits, batch.label), 0.0))),
        agreed=agreed,
        confusion=confusion,
    )


def _number(flags: Bool[Array, " batch"]) -> Int[Array, ""]:
    return jnp.sum(flags.astype(jnp.int32))


def _gaps(
    logits: Logits, right: Bool[Array, " batch"], mask: Bool[Array, " batch"]
) -> Float[Array, " bin"]:
    """Returns, for each bin ((i - 1) / BINS, i / BINS], correct examples minus confidences."""
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    # With NumPy: XLA would multiply by 1 / BINS, which is inexact for some edges.
    edges = jnp.asarray(np.arange(1, BINS) / BINS, jnp.float32)
    bins = jnp.sum((confidence[:, None] > edges[None]).astype(jnp.int32), axis=-1)
    in_bin = mask[:, None] & (bins[:, None] == jnp.arange(BINS)[None])
    gap = right.astype(jnp.float32) - confidence
    return jnp.sum(jnp.where(in_bin, gap[:, None], 0.0), axis=0)


def _add(sums: Sum, values: Float[Array, "*shape"]) -> Sum:
    """Adds values, and the exact rounding error of the addition (Knuth's two-sum)."""
    total = sums.total + values
    added = total - sums.total
    lost = (sums.total - (total - added)) + (values - added)
    return Sum(total, sums.lost + lost)


def metrics(tally: Tally) -> dict[str, Any]:
    """Computes the metrics of a tally, which is fetched from the device.

    Returns:
        Fractions from 0 to 1: "top1"; "top5" (of all classes if there are fewer than five);
        "mean_per_class", over classes that occur (scikit-learn's balanced accuracy);
        "calibration_error", the expected one over `BINS` bins of equal width. "loss" in nats.
        If the tally has them: "agreement", the fraction of examples for which the teacher predicts
        the same class, and "confusion", numbers of examples as a list over true classes of lists
        over predicted classes. Loss and calibration error of a model with NaN logits are NaN.

    Raises:
        ValueError: If there were no examples.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, Eq. 3, for the calibration error.
    """
    host: Tally = jax.device_get(tally)
    examples, occurs = int(host.examples.sum()), host.examples > 0
    if not examples:
        raise ValueError("There is nothing to evaluate: no batch holds an example.")
    # Bins are weighted by their numbers of examples, so gaps are not divided by them.
    gaps = np.sum(np.abs(_exact(host.gaps)))
    result: dict[str, Any] = {
        registry.TOP1: int(host.right.sum()) / examples,
        "top5": int(host.top5) / examples,
        registry.MEAN_PER_CLASS: float(np.mean(host.right[occurs] / host.examples[occurs])),
        "calibration_error": float(gaps) / examples,
        "loss": float(_exact(host.loss)) / examples,
    }
    if host.agreed is not None:
        result["agreement"] = int(host.agreed) / examples
    if host.confusion is not None:
        result["confusion"] = host.confusion.tolist()
    return result


def _exact(sums: Sum) -> Float[np.ndarray, "*shape"] | np.float64:
    return np.asarray(sums.total, np.float64) + np.asarray(sums.lost, np.float64)


def most_confused(confusion: Sequence[Sequence[int]], pairs: int) -> list[tuple[int, int, int]]:
    """Returns the most frequent confusions of two classes.

    Args:
        confusion: From `metrics`.
        pairs: Maximum number of confusions.

    Returns:
        (true class, predicted class, number of examples), most frequent first, then in the order
        of the classes; only confusions that occur.
    """
    errors = np.array(confusion)
    np.fill_diagonal(errors, 0)
    true, predicted = np.nonzero(errors)
    confusions = np.stack([true, predicted, errors[true, predicted]], axis=-1)
    order = np.argsort(-confusions[:, 2], kind="stable")[:pairs]
    return [(i, j, number) for i, j, number in confusions[order].tolist()]
