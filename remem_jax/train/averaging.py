"""Exponential moving average (EMA) of a model's weights, equal to timm's ModelEmaV3.

All trained parameters and BatchNorm statistics are averaged in each step, after the update. The
average is evaluated and kept; training itself does not use it.

Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the decay
by step is timm's, https://github.com/huggingface/pytorch-image-models.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from remem_jax.records import Metrics
from remem_jax.train.state import Averaged, State, TrainState

# (state, ...) -> (state, metrics)
Step = Callable[..., tuple[Any, Metrics]]


def begin(state: State, *, decay: float) -> TrainState:
    """Adds the average to a state at step 0; with a decay of 0 the state is returned unchanged."""
    if not decay:
        return state
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), dict(state.variables))
    return Averaged(state, copies)


def averaged(step: Step, *, decay: float, warmup: bool) -> Step:
    """Wraps a step so that it also updates the average of the state's variables.

    Args:
        step: A pure step (state, ...) -> (state, metrics).
        decay: Weight of the previous average, from 0 to below 1; 0 returns the step unchanged.
        warmup: See `weight_at`.

    Returns:
        A pure step over `Averaged`. Integers, such as counters, are copied.
    """
    if not decay:
        return step

    def averaged_step(state: Averaged, *inputs: Any) -> tuple[Averaged, Metrics]:
        trained, metrics = step(state.trained, *inputs)
        weight = weight_at(trained.step, decay=decay, warmup=warmup)

        def mean(average: Array, value: Array) -> Array:
            if not jnp.issubdtype(value.dtype, jnp.floating):
                return value
            return jnp.where(weight < 1, average + weight * (value - average), value)

        average = jax.tree.map(mean, dict(state.average), dict(trained.variables))
        return Averaged(trained, average), metrics

    return averaged_step


def weight_at(step: Int[Array, ""], *, decay: float, warmup: bool) -> Float[Array, ""]:
    """Returns the weight of the model in its average after a step: 1 minus the decay.

    Args:
        step: Number of steps done, at least 1. After the first, the average is the model itself.
        decay: The decay, or with a warm-up its maximum.
        warmup: Whether the decay is at most 1 - (1 + t)**(-2/3), where t is the number of steps
            before this one: 0.37 at the second step, 0.95 at the 90th, 0.99 at the 1,000th.
    """
    before = (step - 1).astype(jnp.float32)
    weight = jnp.full((), 1 - decay, jnp.float32)
    if warmup:
        weight = jnp.maximum(weight, (1 + before) ** (-2 / 3))
    return jnp.where(before > 0, weight, 1.0)
