"""What students minimise, by name: losses with one interface, so that any student takes any.

A loss is a function of the student's answer, the teacher's, and the labels. It uses of the answers
what it compares. Without hard labels (`config.student.hard_labels`) it uses no label: the student
learns from the teacher alone.
"""

import functools
from collections.abc import Callable, Collection, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import losses
from remem_jax.records import Labels, Outputs

# (student, teacher, labels, *, temperature, weight, hard_labels) -> scalar. Temperature and weight
# may be traced.
StudentLoss = Callable[..., Float[Array, ""]]


def feature_distillation(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    field: str,
) -> Float[Array, ""]:
    """What a student minimises that learns a teacher's features, beside labels or logits.

    Args:
        student: Its logits, and its predictions of the teacher's tokens.
        teacher: Logits and tokens; no gradient reaches them.
        labels: As in `losses.cross_entropy`.
        temperature: T of `losses.distillation`, above 0; counts only without hard labels.
        weight: Share w of `losses.features`, from 0 to 1.
        hard_labels: Whether the head learns from labels; else it learns from the teacher's logits,
            or would learn nothing.
        field: Of `Outputs`: "patches" or "cls".

    Returns:
        (1 - w) * cross_entropy + w * features; (1 - w) * distillation + w * features without hard
        labels.
    """
    own, target = getattr(student, field), getattr(teacher, field)
    if own is None or target is None:
        raise ValueError(f"Student and teacher must both answer with {field}.")
    if hard_labels:
        of_head = losses.cross_entropy(student.logits, labels)
    else:
        of_head = losses.distillation(student.logits, teacher.logits, temperature)
    return (1 - weight) * of_head + weight * losses.features(own, _weighted(target, weight))


def labels_alone(
    student: Outputs,
    teacher: Outputs | None,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Cross-entropy of the labels: what a student minimises that is trained from scratch."""
    del teacher, temperature, weight
    return losses.cross_entropy(student.logits, labels)


def _kd(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
) -> Float[Array, ""]:
    """KD; without hard labels T**2 * KL alone, whatever the weight (pure function matching)."""
    if not hard_labels:
        return losses.distillation(student.logits, teacher.logits, temperature)
    taught = _weighted(teacher.logits, weight)
    return losses.knowledge_distillation(
        student.logits, taught, labels, temperature=temperature, weight=weight
    )


def _dist(
    student: Outputs,
    teacher: Outputs,
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    hard_labels: bool,
    masked: bool,
) -> Float[Array, ""]:
    """DIST; without hard labels weight * (inter + intra) alone."""
    logits = student.logits, _weighted(teacher.logits, weight)
    if hard_labels:
        return losses.dist_distillation(
            *logits, labels, temperature=temperature, weight=weight, masked=masked
        )
    terms = losses.dist(*logits, temperature, inter_weight=1.0, intra_weight=1.0, masked=masked)
    return weight * terms


def _weighted(
    outputs: Float[Array, "*of"], weight: Float[Array, ""] | float
) -> Float[Array, "*of"]:
    """Outputs of a teacher as they are, or zeros at weight 0, where 0 x NaN would be NaN."""
    return jnp.where(weight > 0, outputs, jnp.zeros_like(outputs))


# A config's name of it -> what a student minimises.
STUDENT_LOSSES: Mapping[str, StudentLoss] = {
    "kd": _kd,
    "dist": functools.partial(_dist, masked=False),
    "dist_masked": functools.partial(_dist, masked=True),
    "features": functools.partial(feature_distillation, field="patches"),
    "features_cls": functools.partial(feature_distillation, field="cls"),
}
# The field of `Outputs` that a loss compares beside the logits.
FEATURES: Mapping[str, str] = {"features": "patches", "features_cls": "cls"}


def fields(names: Collection[str]) -> tuple[str, ...]:
    """The fields of `Outputs` that losses with these names compare beside the logits."""
    return tuple(sorted({FEATURES[name] for name in names if name in FEATURES}))


def counting(name: str, *, hard_labels: bool) -> frozenset[str]:
    """What decides the value of one of `STUDENT_LOSSES`, of "temperature" and "weight"."""
    if name == "kd" and not hard_labels:
        return frozenset({"temperature"})
    if name in FEATURES and hard_labels:
        return frozenset({"weight"})
    return frozenset({"temperature", "weight"})
