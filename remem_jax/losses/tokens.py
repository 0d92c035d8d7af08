"""Losses of the teacher's features: squared errors, and the divergence of similarities in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_VARIANCE = 1e-6  # Added to the variance of tokens; the epsilon of Flax's LayerNorm.


def features(
    student: Float[Array, "batch *token feature"], teacher: Float[Array, "batch *token feature"]
) -> Float[Array, ""]:
    """Computes the mean squared error of predictions of the teacher's standardised tokens.

    Every token of the teacher is first brought to a mean of 0 and a variance of 1 over its
    features, without learned scales. So a student that predicts 0 has a loss of 1 with any
    teacher (0 for a constant token), and a weight means the same for all teachers.

    Args:
        student: Predictions of the standardised tokens.
        teacher: Tokens; no gradient reaches them.

    Returns:
        The mean over batch, tokens and features, at least 0.

    Source: Romero et al. 2015, https://arxiv.org/abs/1412.6550 (hints, through a regressor); Wei et
    al. 2022, https://arxiv.org/abs/2205.14141 (whitened targets). Differs from both: FitNets
    trains on hints first and on labels later, Wei et al. have a smooth L1 distance.
    """
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    mean = jnp.mean(target, axis=-1, keepdims=True)
    variance = jnp.var(target, axis=-1, keepdims=True)
    target = (target - mean) * jax.lax.rsqrt(variance + _VARIANCE)
    return jnp.mean((student.astype(jnp.float32) - target) ** 2)


def queue_similarity(
    student: Float[Array, "batch feature"],
    teacher: Float[Array, "batch feature"],
    queue: Float[Array, "entry feature"],
    temperature: float,
) -> Float[Array, ""]:
    """Computes how far a student's similarities to a queue of features are from the teacher's.

    Args:
        student: Predictions of the teacher's features. Their norm has no effect.
        teacher: The teacher's features of the same images; no gradient reaches them.
        queue: Features of the teacher, of L2 norm 1; zeros, too, are entries. No gradient.
        temperature: By which cosine similarities are divided, above 0.

    Returns:
        KL of the softmax over the entries, of the student from the teacher, in nats, averaged over
        the batch.

    Source: LightlyTrain's distillation, https://github.com/lightly-ai/lightly-train
    (distillationv3), its global loss.
    """
    entries = jax.lax.stop_gradient(queue).astype(jnp.float32).T
    return _divergence(normalised(student) @ entries, normalised(teacher) @ entries, temperature)


def token_similarity(
    student: Float[Array, "batch token feature"],
    teacher: Float[Array, "batch token feature"],
    temperature: float,
) -> Float[Array, ""]:
    """Computes how far the similarities among an image's tokens are from the teacher's.

    Args:
        student: Predictions of the teacher's tokens. Their norm has no effect.
        teacher: The teacher's tokens; no gradient reaches them.
        temperature: By which cosine similarities are divided, above 0.

    Returns:
        KL of the softmax over the tokens of an image, for each token, in nats, averaged over
        tokens and batch. A token is among those that it is compared with.

    Source: LightlyTrain's distillation, https://github.com/lightly-ai/lightly-train
    (distillationv3), its local loss.
    """
    student, teacher = normalised(student), normalised(teacher)
    return _divergence(
        student @ jnp.swapaxes(student, -1, -2),
        teacher @ jnp.swapaxes(teacher, -1, -2),
        temperature,
    )


def _divergence(
    student: Float[Array, "*some entry"], teacher: Float[Array, "*some entry"], temperature: float
) -> Float[Array, ""]:
    """Returns the mean divergence of the softmax of similarities over the last axis."""
    student = jax.nn.log_softmax(student / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


def normalised(x: Float[Array, "*some feature"]) -> Float[Array, "*some feature"]:
    """Divides vectors by their L2 norm, in float32; zeros remain zeros, with a gradient of 0."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    positive = square > 0
    return jnp.where(positive, x * jax.lax.rsqrt(jnp.where(positive, square, 1.0)), 0.0)
