"""Losses: logits in, mean over the batch out, no state. All in float32, all in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.records import Labels


def cross_entropy(
    logits: Float[Array, "batch klass"], labels: Labels, *, smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean cross-entropy of the labels.

    Args:
        logits: Unnormalised log-probabilities.
        labels: Indices of the classes, or for each image the shares of all classes.
        smoothing: Share of each target that is spread evenly over all classes.

    Returns:
        The mean over the batch, in nats.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    if labels.ndim == 1:
        of_label = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    else:
        of_label = jnp.sum(labels * log_probs, axis=-1)
    return -jnp.mean((1 - smoothing) * of_label + smoothing * jnp.mean(log_probs, axis=-1))


def distillation(
    student_logits: Float[Array, "batch klass"],
    teacher_logits: Float[Array, "batch klass"],
    temperature: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Mean divergence of the student's softened classes from the teacher's.

    Both sets of logits are divided by the temperature T. The result is multiplied by T**2, so
    that its gradient keeps its size when T changes.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        temperature: T, above 0; 1 leaves the classes as they are. May be traced.

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
    student_logits: Float[Array, "batch klass"],
    teacher_logits: Float[Array, "batch klass"],
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """What a student minimises: labels and teacher, weighed against each other.

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
