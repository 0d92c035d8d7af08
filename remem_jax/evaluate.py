"""Evaluation in one pass, counted on the device; exact for any batch size, devices or hosts.

Any number of models is evaluated in the same pass: each batch is read and transformed once, and the
teacher's logits are computed once for all models that are compared with it.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remem_jax import losses, mesh
from remem_jax.data import registry
from remem_jax.records import Apply, Batch, Variables

BINS = 15  # Bins of the calibration error, as in section 2 of its paper.
TOP = 5
_AHEAD = 2  # Maximum number of forward passes in flight on the device, besides the last.

Logits = Float[Array, "batch classes"]
# Stored images -> model inputs; jitted.
EvaluationTransform = Callable[[Array], Array]


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
        apply: The model in evaluation mode, jitted.
        variables: Its variables.
    """

    apply: Apply
    variables: Variables


class Evaluated(NamedTuple):
    """Results of one pass over the batches; see `metrics`.

    Attributes:
        models: Metrics of each model, in the given order.
        teacher: Metrics of the teacher; None without one.
    """

    models: list[dict[str, Any]]
    teacher: dict[str, Any] | None


class Wanted(NamedTuple):
    """What an evaluation returns besides metrics.

    Attributes:
        confusion: Whether every pair of classes is counted for each model, but not for the teacher;
            see `init_tally`.
        predictions: Whether the predicted class of each example and its probability are returned;
            all processes of a run get all of them.
        logits: The same for the logits of each example, of the teacher or, without one, of the
            models.
    """

    confusion: bool = False
    predictions: bool = False
    logits: bool = False


METRICS_ALONE = Wanted()


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


def evaluate(
    count: Count,
    transform: EvaluationTransform,
    models: Sequence[Model],
    batches: Iterable[Batch],
    *,
    classes: int,
    teacher: Model | None = None,
    wanted: Wanted = METRICS_ALONE,
) -> Evaluated:
    """Evaluates models in one pass over the batches, and fetches the metrics at the end.

    A model's metrics equal, to the last bit, those of an evaluation of this model alone. Besides
    the models, the device holds a tally for each and at most `_AHEAD + 1` batches.

    Args:
        count: The function of this module, jitted.
        transform: Computes the inputs of all models.
        models: The models; if there are none, and no teacher, no batch is read.
        batches: All examples once; the padding of the last batch is masked.
        classes: Number of classes.
        teacher: Model whose agreement with each of the models is measured; also evaluated.
        wanted: What is returned besides metrics.

    Returns:
        See `metrics`, also for what it raises. With `wanted.predictions` also "predictions", int32:
        the predicted class index of each example, in order; and "confidences", float32: its softmax
        probability. With `wanted.logits` also "logits", float32, (example, class), in order.
    """

    def init(model: Model, *, agreement: bool, confusion: bool, with_logits: bool) -> _Evaluation:
        tally = init_tally(classes, agreement=agreement, confusion=confusion)
        return _Evaluation(count, model, tally, predictions=wanted.predictions, logits=with_logits)

    if not models and teacher is None:
        return Evaluated([], None)
    teacher_evaluation = teacher and init(
        teacher, agreement=False, confusion=False, with_logits=wanted.logits
    )
    agreement = teacher is not None
    evaluations = [
        init(
            model,
            agreement=agreement,
            confusion=wanted.confusion,
            with_logits=wanted.logits and not agreement,
        )
        for model in models
    ]
    pending: collections.deque[Array] = collections.deque()
    for batch in batches:
        images = transform(batch.image)
        teacher_logits = teacher_evaluation.add(batch, images) if teacher_evaluation else None
        # Otherwise batches would accumulate on the device; and on several devices of a CPU, many
        # programs in flight might block each other in their collectives.
        if teacher_logits is not None:
            _add_pending(pending, teacher_logits)
        for evaluation in evaluations:
            _add_pending(pending, evaluation.add(batch, images, teacher_logits))
    results = [evaluation.result() for evaluation in evaluations]
    return Evaluated(results, teacher_evaluation and teacher_evaluation.result())


def _add_pending(pending: collections.deque[Array], logits: Array) -> None:
    """Adds logits that the device computes, after waiting until few others are pending."""
    pending.append(logits)
    if len(pending) > _AHEAD:
        pending.popleft().block_until_ready()


class _Evaluation:
    """The evaluation of one model, batch by batch."""

    def __init__(
        self, count: Count, model: Model, tally: Tally, *, predictions: bool, logits: bool
    ) -> None:
        self._count, self._model, self._tally = count, model, tally
        self._predicted: list[_Predictions] | None = [] if predictions else None
        self._logits: _Fetched | None = _Fetched() if logits else None

    def add(self, batch: Batch, images: Array, teacher_logits: Logits | None = None) -> Logits:
        """Counts a batch, and returns its logits."""
        logits = self._model.apply(self._model.variables, images)
        self._tally = self._count(self._tally, logits, batch, teacher_logits)
        if self._predicted is not None:
            self._predicted.append(_predicted(logits, batch.mask))
        if self._logits is not None:
            self._logits.add(logits, batch.mask)
        return logits

    def result(self) -> dict[str, Any]:
        """Returns the metrics; see `evaluate`."""
        result = metrics(self._tally)
        if self._logits is not None:
            result["logits"] = self._logits.all()
        if self._predicted is None:
            return result
        classes, confidences = _in_order(self._predicted)
        return result | {"predictions": classes, "confidences": confidences}


class _Fetched:
    """Logits on the host, fetched a few batches after the device has begun to compute them."""

    def __init__(self) -> None:
        self._pending: collections.deque[tuple[Array, Array]] = collections.deque()
        self._fetched: list[np.ndarray] = []

    def add(self, logits: Logits, mask: Bool[Array, " batch"]) -> None:
        """Adds the logits of a batch."""
        self._pending.append((logits, mask))
        if len(self._pending) > _AHEAD:
            self._fetch()

    def all(self) -> np.ndarray:
        """Returns the logits of all batches, without masked examples."""
        while self._pending:
            self._fetch()
        return np.concatenate(self._fetched)

    def _fetch(self) -> None:
        whole = jax.tree.map(mesh.whole, self._pending.popleft())
        logits, mask = jax.device_get(whole)
        self._fetched.append(logits[mask].astype(np.float32))


class _Predictions(NamedTuple):
    """Predictions for a batch.

    Attributes:
        classes: Predicted classes, as in `count`; -1 if an example is masked.
        confidences: Their softmax probabilities.
    """

    classes: Int[Array, " batch"]
    confidences: Float[Array, " batch"]


@jax.jit
def _predicted(logits: Logits, mask: Bool[Array, " batch"]) -> _Predictions:
    logits = logits.astype(jnp.float32)
    classes = jnp.where(mask, jnp.argmax(logits, axis=-1), -1)
    return _Predictions(classes, jnp.max(jax.nn.softmax(logits), axis=-1))


def _in_order(predicted: Sequence[_Predictions]) -> tuple[np.ndarray, np.ndarray]:
    """Fetches classes and confidences of all batches, without masked examples."""
    batches = jax.device_get(jax.tree.map(mesh.whole, list(predicted)))
    classes, confidences = map(np.concatenate, zip(*batches, strict=True))
    counted = classes >= 0
    return classes[counted], confidences[counted]


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
