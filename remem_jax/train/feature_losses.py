"""The student losses that compare features with the teacher's; see `student_losses`."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import losses
from remem_jax.records import Labels, Outputs
from remem_jax.train.loss_records import Form, StudentLoss


def _features(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    field: str,
) -> Float[Array, ""]:
    """Compares features; see `_head_loss`. Of several layers, it is the mean over the layers."""
    head_loss = _head_loss(student, teacher, labels if hard_labels else None, temperature)
    predicted, target = getattr(student, field), getattr(teacher, field)
    if field == "layers":
        # A student with fewer stages than the teacher has layers predicts the last of them.
        layers = zip(predicted, target[-len(predicted) :], strict=True)
        feature_loss = jnp.mean(jnp.stack([losses.features(*pair) for pair in layers]))
    else:
        feature_loss = losses.features(predicted, target)
    return (1 - weight) * head_loss + weight * feature_loss


def _head_loss(
    student: Outputs,
    teacher: Outputs,
    labels: Labels | None,
    temperature: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Computes the loss of the head: of the labels or, without any, the teacher's logits."""
    if labels is not None:
        return losses.cross_entropy(student.logits, labels)
    return losses.distillation(student.logits, teacher.logits, temperature)


_WITH_LABELS = Form(
    formula="(1 - w) CE + w MSE(features)", settings=frozenset({"weight"}), excluded_weight=1.0
)
_WITHOUT_LABELS = Form(formula="(1 - w) T² KL + w MSE(features)", excluded_weight=1.0)
_PATCHES = StudentLoss(
    name="features",
    title="The teacher's patch tokens",
    function=functools.partial(_features, field="patches"),
    with_labels=_WITH_LABELS,
    without_labels=_WITHOUT_LABELS,
    features=("patches",),
    zero_at_teacher=False,
)
_CLS = StudentLoss(
    name="features_cls",
    title="The teacher's [CLS] token",
    function=functools.partial(_features, field="cls"),
    with_labels=_WITH_LABELS,
    without_labels=_WITHOUT_LABELS,
    features=("cls",),
    zero_at_teacher=False,
)
_LAYERS = StudentLoss(
    name="features_layers",
    title="The teacher's patch tokens after several blocks",
    function=functools.partial(_features, field="layers"),
    with_labels=dataclasses.replace(_WITH_LABELS, formula="(1 - w) CE + w mean MSE(layer)"),
    without_labels=dataclasses.replace(
        _WITHOUT_LABELS, formula="(1 - w) T² KL + w mean MSE(layer)"
    ),
    features=("layers",),
    zero_at_teacher=False,
)


def _relations(
    student: Any,
    teacher: Any,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    similarity_temperature: float,
) -> Float[Array, ""]:
    """Compares similarities of features: with a queue, and within an image.

    At w = 1 both terms have the weight of LightlyTrain's. For the head, see `_head_loss`.

    Args:
        student: An `Outputs` with all fields, as `StudentLoss.__call__` has checked.
        teacher: The same.
        labels: See `StudentLoss.__call__`.
        temperature: See `StudentLoss.__call__`.
        weight: See `StudentLoss.__call__`.
        hard_labels: See `StudentLoss.__call__`.
        similarity_temperature: Temperature of all similarities.
    """
    head_loss = _head_loss(student, teacher, labels if hard_labels else None, temperature)
    among_images = losses.queue_similarity(
        student.pooled, teacher.pooled, teacher.queue, similarity_temperature
    )
    within_image = losses.token_similarity(student.patches, teacher.patches, similarity_temperature)
    return head_loss + weight * (among_images + within_image)


_SIMILARITIES = "w (KL(queue) + KL(tokens)), both at 0.07"
_RELATIONS = StudentLoss(
    name="relations",
    title="Similarities of the teacher's features",
    function=functools.partial(_relations, similarity_temperature=0.07),
    with_labels=Form(formula=f"CE + {_SIMILARITIES}", settings=frozenset({"weight"})),
    without_labels=Form(formula=f"T² KL + {_SIMILARITIES}"),
    features=("patches", "pooled"),
    has_queue=True,
    zero_at_teacher=False,
)
RECORDS = (_PATCHES, _CLS, _LAYERS, _RELATIONS)
