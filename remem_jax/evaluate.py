"""Evaluation in one pass: counted on the device, exact whatever the batches, devices or hosts.

Any number of models is evaluated in the same pass: each batch is read once, made into what models
see once, and the teacher's logits are computed once for all models that are compared with it.
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

BINS = 15  # Of the calibration error, as in the paper that names it: section 2.
TOP = 5
_AHEAD = 2  # Batches that wait on the device while the host goes on.

Logits = Float[Array, "batch classes"]
# Stored images -> images as models take them; jitted.
EvaluationTransform = Callable[[Array], Array]


class Model(NamedTuple):
    """A model as evaluation takes it.

    Attributes:
        apply: The model in evaluation mode, jitted.
        variables: Of the model.
    """

    apply: Apply
    variables: Variables


class Evaluated(NamedTuple):
    """What one pass over the batches found; see `metrics`.

    Attributes:
        models: Metrics of each model, in their order.
        teacher: Metrics of the teacher; None without one.
    """

    models: list[dict[str, Any]]
    teacher: dict[str, Any] | None


class Sum(NamedTuple):
    """Sums over any number of batches, as good as in float64, which JAX has switched off.

    Attributes:
        total: The sums, as float32 has them.
        lost: What rounding took from them.
    """

    total: Float[Array, "*of"]
    lost: Float[Array, "*of"]


class Tally(NamedTuple):
    """What was counted so far.

    Attributes:
        seen: Examples of each class.
        right: Those that are classified rightly.
        top5: Examples whose class is among the five that the model finds likeliest.
        gaps: For each bin of the model's confidence, the examples in it that are classified
            rightly, less the sum of their confidences.
        loss: Cross-entropy, summed over the examples.
        agreed: Examples that the teacher puts into the same class, rightly or not; None where
            there is no teacher.
        confusion: Examples by true and by predicted class; None where that is not asked for.
    """

    seen: Int[Array, " classes"]
    right: Int[Array, " classes"]
    top5: Int[Array, ""]
    gaps: Sum
    loss: Sum
    agreed: Int[Array, ""] | None
    confusion: Int[Array, "classes classes"] | None


Count = Callable[[Tally, Array, Batch, Array | None], Tally]


def init_tally(classes: int, *, agreement: bool, confusion: bool) -> Tally:
    """The tally of no examples.

    Args:
        classes: Number of classes.
        agreement: Whether a teacher's logits will come with the student's.
        confusion: Whether to count every pair of classes: 4 bytes for each, which is 100 MB for
            5,089 classes.
    """

    # Every count needs a buffer of its own: they are given away when the next batch is added.
    def none(*shape: int) -> Int[Array, "*of"]:
        return jnp.zeros(shape, jnp.int32)

    def nothing(*shape: int) -> Sum:
        return Sum(jnp.zeros(shape), jnp.zeros(shape))

    return Tally(
        seen=none(classes),
        right=none(classes),
        top5=none(),
        gaps=nothing(BINS),
        loss=nothing(),
        agreed=none() if agreement else None,
        confusion=none(classes, classes) if confusion else None,
    )


def count(
    tally: Tally, logits: Logits, batch: Batch, teacher_logits: Logits | None = None
) -> Tally:
    """Adds a batch to a tally; masked examples count for nothing.

    A pure function. The caller wraps it in `jax.jit` and gives the tally away. A batch may be
    spread over devices and hosts: the tally comes out the same on all of them. Of equal logits,
    the class with the lower index is the likelier.

    Args:
        tally: Of the batches before.
        logits: Of the model.
        batch: What they are the logits of.
        teacher_logits: Of the teacher, if the tally counts agreement.

    Raises:
        ValueError: If only one of the tally and the arguments knows of a teacher.
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
        seen=tally.seen.at[batch.label].add(batch.mask.astype(jnp.int32)),
        right=tally.right.at[batch.label].add((batch.mask & right).astype(jnp.int32)),
        top5=tally.top5 + _number(batch.mask & in_top5),
        gaps=_add(tally.gaps, _gaps(logits, right, batch.mask)),
        loss=_add(tally.loss, jnp.sum(jnp.where(batch.mask, loss(logits, batch.label), 0.0))),
        agreed=agreed,
        confusion=confusion,
    )


def _number(which: Bool[Array, " batch"]) -> Int[Array, ""]:
    return jnp.sum(which.astype(jnp.int32))


def _gaps(
    logits: Logits, right: Bool[Array, " batch"], mask: Bool[Array, " batch"]
) -> Float[Array, " bin"]:
    """Examples that are right, less their confidences, by bin: ((i - 1) / BINS, i / BINS]."""
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    # By NumPy: XLA would multiply by 1 / BINS, and miss the nearest float to some edges.
    edges = jnp.asarray(np.arange(1, BINS) / BINS, jnp.float32)
    own_bin = jnp.sum((confidence[:, None] > edges[None]).astype(jnp.int32), axis=-1)
    in_bin = mask[:, None] & (own_bin[:, None] == jnp.arange(BINS)[None])
    gap = right.astype(jnp.float32) - confidence
    return jnp.sum(jnp.where(in_bin, gap[:, None], 0.0), axis=0)


def _add(sums: Sum, values: Float[Array, "*of"]) -> Sum:
    """Adds, and keeps what rounding takes exactly (Knuth's two-sum)."""
    total = sums.total + values
    added = total - sums.total
    lost = (sums.total - (total - added)) + (values - added)
    return Sum(total, sums.lost + lost)


def metrics(tally: Tally) -> dict[str, Any]:
    """Metrics of the examples in a tally, which is fetched from the device.

    Returns:
        Shares from 0 to 1: "top1"; "top5", of as many classes as there are if these are fewer;
        "mean_per_class", over classes that occur (scikit-learn's balanced accuracy);
        "calibration_error", the expected one over `BINS` bins of equal width. "loss" in nats.
        If the tally has them: "agreement", the share of examples that the teacher puts into the
        same class, and "confusion", numbers of examples, with a list for each true class that
        has a number for each predicted one. Loss and calibration error of a model that gives
        NaN are NaN.

    Raises:
        ValueError: If there were no examples.

    Source: of the calibration error, Guo et al. 2017, https://arxiv.org/abs/1706.04599, Eq. 3.
    """
    found: Tally = jax.device_get(tally)
    examples, occurs = int(found.seen.sum()), found.seen > 0
    if not examples:
        raise ValueError("There is nothing to evaluate: no batch holds an example.")
    # A bin weighs as many examples as it has, so that its gap need not be divided by them.
    gaps = np.sum(np.abs(_exact(found.gaps)))
    result: dict[str, Any] = {
        registry.TOP1: int(found.right.sum()) / examples,
        "top5": int(found.top5) / examples,
        registry.MEAN_PER_CLASS: float(np.mean(found.right[occurs] / found.seen[occurs])),
        "calibration_error": float(gaps) / examples,
        "loss": float(_exact(found.loss)) / examples,
    }
    if found.agreed is not None:
        result["agreement"] = int(found.agreed) / examples
    if found.confusion is not None:
        result["confusion"] = found.confusion.tolist()
    return result


def _exact(sums: Sum) -> Float[np.ndarray, "*of"] | np.float64:
    return np.asarray(sums.total, np.float64) + np.asarray(sums.lost, np.float64)


def evaluate(
    count: Count,
    transform: EvaluationTransform,
    models: Sequence[Model],
    batches: Iterable[Batch],
    *,
    classes: int,
    teacher: Model | None = None,
    confusion: bool = False,
    predictions: bool = False,
) -> Evaluated:
    """Metrics of models in one pass over the batches, fetched from the device at the end.

    A model's metrics are, to the last bit, those that it has when it is evaluated alone. Beside
    the models, the device holds a tally for each and at most `_AHEAD + 1` batches.

    Args:
        count: The function of this module, jitted.
        transform: What all models see of the images.
        models: The models; where there are none, and no teacher, no batch is read.
        batches: All examples once; what fills up the last batch is masked.
        classes: Number of classes.
        teacher: Whose agreement with each model is measured; it is evaluated itself, too.
        confusion: Whether to count every pair of classes for each model, but not for the teacher;
            see `init_tally`.
        predictions: Whether to keep which class each example is put into; all processes of a run
            then get all of them.

    Returns:
        See `metrics`, also for what it raises. With `predictions` also "predictions", int32: the
        index of a class for each example, in their order.
    """

    def init(model: Model, *, agreement: bool, confusion: bool) -> _Evaluation:
        tally = init_tally(classes, agreement=agreement, confusion=confusion)
        return _Evaluation(count, model, tally, predictions=predictions)

    if not models and teacher is None:
        return Evaluated([], None)
    of_teacher = teacher and init(teacher, agreement=False, confusion=False)
    agreement = teacher is not None
    own = [init(model, agreement=agreement, confusion=confusion) for model in models]
    pending: collections.deque[Array] = collections.deque()
    for batch in batches:
        images = transform(batch.image)
        taught = of_teacher.add(batch, images) if of_teacher else None
        last = [taught, *(one.add(batch, images, taught) for one in own)][-1]
        # The device computes in order: when the last logits are there, so are the others.
        pending.append(last)
        if len(pending) > _AHEAD:  # Else the host would heap up batches on the device.
            pending.popleft().block_until_ready()
    return Evaluated([one.found() for one in own], of_teacher and of_teacher.found())


class _Evaluation:
    """The evaluation of one model, batch by batch."""

    def __init__(self, count: Count, model: Model, tally: Tally, *, predictions: bool) -> None:
        self._count, self._model, self._tally = count, model, tally
        self._predicted: list[Int[Array, " batch"]] | None = [] if predictions else None

    def add(self, batch: Batch, images: Array, teacher_logits: Logits | None = None) -> Logits:
        """Counts a batch; its logits."""
        logits = self._model.apply(self._model.variables, images)
        self._tally = self._count(self._tally, logits, batch, teacher_logits)
        if self._predicted is not None:
            self._predicted.append(_predicted(logits, batch.mask))
        return logits

    def found(self) -> dict[str, Any]:
        """What was found; see `evaluate`."""
        found = metrics(self._tally)
        if self._predicted is None:
            return found
        return found | {"predictions": _in_order(self._predicted)}


@jax.jit
def _predicted(logits: Logits, mask: Bool[Array, " batch"]) -> Int[Array, " batch"]:
    """The class of each example, as `count` sees it; -1 where it is masked."""
    return jnp.where(mask, jnp.argmax(logits.astype(jnp.float32), axis=-1), -1)


def _in_order(predicted: Sequence[Int[Array, " batch"]]) -> Int[np.ndarray, " example"]:
    """Fetches the classes of all batches, and leaves out what is masked."""
    whole = jax.device_get([mesh.whole(batch) for batch in predicted])
    classes = np.concatenate(whole)
    return classes[classes >= 0]


def most_confused(confusion: Sequence[Sequence[int]], pairs: int) -> list[tuple[int, int, int]]:
    """The errors that are made most often, at most so many kinds of them.

    Args:
        confusion: As `metrics` gives it.
        pairs: How many at most.

    Returns:
        True class, predicted class, number of examples; most first, then in the order of the
        classes. Of errors that are never made, none.
    """
    errors = np.array(confusion)
    np.fill_diagonal(errors, 0)
    true, predicted = np.nonzero(errors)
    found = np.stack([true, predicted, errors[true, predicted]], axis=-1)
    order = np.argsort(-found[:, 2], kind="stable")[:pairs]
    return [(i, j, number) for i, j, number in found[order].tolist()]


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> float:
    """Top-1 of a logistic regression on frozen features.

    Args:
        train: Features (example, feature) and labels (example,).
        test: The same, of other images.

    Returns:
        Share of the test images classified rightly, from 0 to 1.
    """
    from sklearn import linear_model, pipeline, preprocessing  # Takes a second.

    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(C=0.01, max_iter=300)
    )
    model.fit(*train)
    return float(model.score(*test))
