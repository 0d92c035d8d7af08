"""Losses of the teacher's features."""

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
