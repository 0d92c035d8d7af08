"""DIST: the correlation of a student's predictions with its teacher's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.losses.supervision import cross_entropy
from remem_jax.records import Labels

# Added to the product of two norms, as in DIST's code.
_EPSILON = 1e-8
# Norm below which a centred row or column whose largest entry is 1 counts as constant. In float32,
# rounding of logits of 16 gives a column of 512 a norm of 2e-5; 1e-3 is well above it.
_CONSTANT = 1e-3


def dist(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: Float[Array, ""] | float,
    *,
    inter_weight: Float[Array, ""] | float,
    intra_weight: Float[Array, ""] | float,
    masked: bool,
) -> Float[Array, ""]:
    """Computes how far the student's softened predictions are from correlating with the teacher's.

    Two terms, each T**2 * (1 - mean of Pearson's correlations of student and teacher): `inter`
    over the rows (the classes of an image), `intra` over the columns (the images of a class). A
    column is as long as the batch, so `intra` needs the whole global batch.

    The official formula adds 1e-8 to the product of the two norms. If a class is absent from the
    batch and the teacher is sharp, that is more than the product: the class's correlation is near
    0 even for a student equal to the teacher, and its gradient pulls that student away. With 128
    images, 397 classes and a margin of 16 between logits, this holds for most classes. And if a
    student's column is constant, as with a head of zeros, its gradient is divided by 1e-8.

    With `masked` there is no epsilon, and the teacher may be arbitrarily sharp:

    - Each row and column is first divided by its largest entry, in log space, so that it does not
      underflow. A correlation does not depend on the scale, so an absent class counts as in
      the official formula with a less sharp teacher. Leaving it out instead would lose most
      of the teacher in a small batch.
    - Rows and columns whose centred norm in the teacher is below 1e-3 are left out of the mean:
      one-hot columns without their class, the only image of a batch, equal logits.
    - The student's norm counts as at least 1e-3, which bounds the gradient. As the limit for the
      teacher is the same, a student equal to the teacher has a correlation of 1 in all that count.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        temperature: T, above 0. May be traced.
        inter_weight: Weight of the term over images (beta), at least 0.
        intra_weight: Weight of the term over classes (gamma), at least 0.
        masked: False is the official formula.

    Returns:
        inter_weight * inter + intra_weight * intra; each term is from 0 to 2 * T**2. With
        `masked` it is 0, up to rounding, if the student's logits are the teacher's.

    Source: Huang et al. 2022, https://arxiv.org/abs/2205.10536, inter-class and intra-class
    relations; T**2 and the epsilon are in its code only.
    """
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature
    teacher = jax.nn.log_softmax(teacher)
    distance = _scaled_distance if masked else _official_distance
    inter = distance(student, teacher, axis=1)
    intra = distance(student, teacher, axis=0)
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _official_distance(
    student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, axis: int
) -> Float[Array, ""]:
    """Returns 1 - mean correlation of probabilities along an axis, given their logarithms."""
    student, teacher = _centred(jnp.exp(student), axis), _centred(jnp.exp(teacher), axis)
    norms = _norm(student, axis) * _norm(teacher, axis)
    return 1 - jnp.mean(jnp.sum(student * teacher, axis) / (norms + _EPSILON))


def _scaled_distance(
    student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, axis: int
) -> Float[Array, ""]:
    """Returns `_official_distance` without epsilon, over the rows or columns that vary."""

    def scaled(log_probs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        # A correlation does not depend on the scale, whose gradient would be 0.
        largest = jax.lax.stop_gradient(jnp.max(log_probs, axis, keepdims=True))
        return _centred(jnp.exp(log_probs - largest), axis)

    student, teacher = scaled(student), scaled(teacher)
    teacher_norm = _norm(teacher, axis)
    counts = teacher_norm >= _CONSTANT
    norms = jnp.maximum(_norm(student, axis), _CONSTANT) * jnp.maximum(teacher_norm, _CONSTANT)
    distances = 1 - jnp.sum(student * teacher, axis) / norms
    counted = jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(counts, distances, 0.0)) / counted


def _centred(x: Float[Array, "batch classes"], axis: int) -> Float[Array, "batch classes"]:
    return x - jnp.mean(x, axis, keepdims=True)


def _norm(x: Float[Array, "batch classes"], axis: int) -> Float[Array, " other"]:
    """Returns the L2 norm, with a gradient of 0 at 0, where that of the square root is NaN."""
    square = jnp.sum(x**2, axis)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def dist_distillation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    masked: bool,
) -> Float[Array, ""]:
    """Computes the loss of DIST: cross-entropy of the labels, and correlation with the teacher.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        labels: As in `cross_entropy`.
        temperature: T of `dist`, above 0.
        weight: Weight of both terms of `dist` (beta = gamma; 1 in the paper), at least 0; 0 is
            the cross-entropy alone.
        masked: As in `dist`.

    Returns:
        cross_entropy + weight * (inter + intra).

    Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, section 3.
    """
    hard = cross_entropy(student_logits, labels)
    soft = dist(
        student_logits,
        teacher_logits,
        temperature,
        inter_weight=1.0,
        intra_weight=1.0,
        masked=masked,
    )
    return hard + weight * soft
