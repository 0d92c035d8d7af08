"""Evaluation in one pass, for any batch size, devices or hosts.

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

from remem_jax import mesh
from remem_jax.records import Apply, Batch, Variables
from remem_jax.tallies import Count, Logits, Tally, init_tally, metrics

_AHEAD = 2  # Maximum number of forward passes in flight on the device, besides the last.

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
    """Results of one pass over the batches; see `tallies.metrics`.

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
            see `tallies.init_tally`.
        predictions: Whether the predicted class of each example and its probability are returned;
            all processes of a run get all of them.
        logits: The same for the logits of each example, of the teacher or, without one, of the
            models.
    """

    confusion: bool = False
    predictions: bool = False
    logits: bool = False


METRICS_ALONE = Wanted()


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
        count: `tallies.count`, jitted.
        transform: Computes the inputs of all models.
        models: The models; if there are none, and no teacher, no batch is read.
        batches: All examples once; the padding of the last batch is masked.
        classes: Number of classes.
        teacher: Model whose agreement with each of the models is measured; also evaluated.
        wanted: What is returned besides metrics.

    Returns:
        See `tallies.metrics`, also for what it raises. With `wanted.predictions` also
        "predictions", int32: the predicted class index of each example, in order; and
        "confidences", float32: its softmax probability. With `wanted.logits` also "logits",
        float32, (example, class), in order.
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
