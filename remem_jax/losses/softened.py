"""Losses of the teacher's logits, in nats: the divergence of softened predictions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from remem_jax.losses.supervision import cross_entropy
from remem_jax.records import Labels

_DEVIATION = 1e-7  # Added to a standard deviation, as in the code of logit standardisation.
_EXCLUDED = -1e9  # Logit of a class without probability.


def distillation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Computes the mean divergence of the student's softened predictions from the teacher's.

    Both sets of logits are divided by the temperature T. The result is multiplied by T**2, so
    that its gradient keeps its size when T changes.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        temperature: T, above 0; 1 softens nothing. May be traced.

    Returns:
        T**2 * KL(teacher || student) in nats, averaged over the batch.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature
    teacher = jax.nn.log_softmax(teacher)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * jnp.mean(divergence)


def knowledge_distillation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Computes the weighted mean of the cross-entropy of the labels and `distillation`.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        labels: As in `cross_entropy`.
        temperature: T of `distillation`, above 0.
        weight: Share w of `distillation`, from 0 (labels only) to 1 (teacher only).

    Returns:
        (1 - w) * cross_entropy + w * distillation, in nats.

    Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, section 3.
    """
    hard = cross_entropy(student_logits, labels)
    soft = distillation(student_logits, teacher_logits, temperature)
    return (1 - weight) * hard + weight * soft


def standardise(
    logits: Float[Array, "batch classes"],
) -> Float[Array, "batch classes"]:
    """Brings each image's logits to a mean of 0 and a standard deviation of 1 over the classes.

    The deviation has n - 1 in its denominator, for n classes, at least 2.

    Equal logits become equal values near 0. The derivative is of the order of the inverse of the
    deviation, and at most 1e7, as that of the authors' code in torch: the deviation itself has a
    derivative of 0 there.

    Args:
        logits: Unnormalised log-probabilities.

    Returns:
        The same shape, in float32. It does not depend on the scale or the mean of the logits.

    Source: Sun et al. 2024, https://arxiv.org/abs/2403.01732, algorithm 1; the epsilon is in its
    code only, https://github.com/sunshangquan/logit-standardization-KD. The temperature is a
    separate argument of `distillation`.
    """
    logits = logits.astype(jnp.float32)
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    varies = variance > 0  # The derivative of the root is infinite at 0.
    deviation = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    return centred / (_DEVIATION + deviation)


def decoupled(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    classes: Int[Array, " batch"],
    temperature: Float[Array, ""] | float,
    *,
    target_weight: float,
    other_weight: float,
) -> Float[Array, ""]:
    """Computes `distillation` of an image's class and of the other classes, weighted separately.

    With p the softened predictions, and y the class of an image, the first term is the divergence
    of (p[y], 1 - p[y]), and the second that of p over the classes without y, normalised. In
    `distillation`, the second has the weight 1 - p[y] of the teacher, which is near 0 if the
    teacher is confident.

    All probabilities are computed as logarithms, so that the result is finite where the authors'
    code, which takes the logarithm of an underflowed probability, is not.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        classes: The class of each image.
        temperature: T, above 0. May be traced.
        target_weight: Weight of the first term (alpha), at least 0.
        other_weight: Weight of the second term (beta), at least 0.

    Returns:
        T**2 * (target_weight * first + other_weight * second) in nats, averaged over the batch.

    Source: Zhao et al. 2022, https://arxiv.org/abs/2203.08679, equation 7, and its code,
    https://github.com/megvii-research/mdistiller.
    """
    is_class = jnp.arange(student_logits.shape[-1])[None] == classes[:, None]
    student_target, student_others = _decoupled(student_logits / temperature, is_class)
    teacher_target, teacher_others = _decoupled(
        jax.lax.stop_gradient(teacher_logits) / temperature, is_class
    )
    target = jnp.sum(jnp.exp(teacher_target) * (teacher_target - student_target), axis=-1)
    others = jnp.sum(jnp.exp(teacher_others) * (teacher_others - student_others), axis=-1)
    return temperature**2 * jnp.mean(target_weight * target + other_weight * others)


def _decoupled(
    logits: Float[Array, "batch classes"], is_class: Bool[Array, "batch classes"]
) -> tuple[Float[Array, "batch 2"], Float[Array, "batch classes"]]:
    """Returns log-probabilities of the class and its complement, and of the other classes."""
    logits = logits.astype(jnp.float32)
    # Finite, so that a probability of 0 times a difference of logarithms is 0.
    others = jnp.where(is_class, _EXCLUDED, logits)
    pair = jnp.stack(
        [
            jnp.sum(jnp.where(is_class, logits, 0.0), axis=-1),
            jax.nn.logsumexp(others, axis=-1),
        ],
        axis=-1,
    )
    return jax.nn.log_softmax(pair), jax.nn.log_softmax(others)
