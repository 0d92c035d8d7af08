"""Sharpness-aware minimisation as a link of an optax chain; schedules and optimisers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from remem_jax.records import Params


class SamState(NamedTuple):
    """State of `sam`.

    Attributes:
        ascent_norm: L2 norm of the last gradient that was climbed, for the log.
    """

    ascent_norm: Float[Array, ""]


def sam(rho: float) -> optax.GradientTransformationExtraArgs:
    """Turns the gradient at the parameters into the gradient at the worst point near them.

    The worst point is found to first order: one step of length `rho` up the gradient, in the L2
    norm over all parameters that the transformation sees, in float32. Put it first in a chain:

        optax.chain(sam(0.5), optax.clip_by_global_norm(1.0), optax.sgd(0.03, momentum=0.9))

    The ascent direction is that of the gradient that comes in: in a chain the whole batch's (m =
    the global batch in the terms of the SAM paper), and of every m examples their own where
    `train.steps.make_supervised_step` has it as `ascent`, before the chain. A zero gradient gives
    no ascent, and no NaN. The norm that was climbed stays in the state, for the log.

    Args:
        rho: Radius, at least 0; 0 leaves gradients as they are and costs nothing.

    Returns:
        A transformation whose `update` needs `params` and `grad_fn`, a function from parameters
        to gradients on the batch of this step, with the same augmentation and dropout.

    Raises:
        ValueError: If `rho` is negative, or `update` is called without `params` or `grad_fn`.

    Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412, algorithm 1.
    """
    if rho < 0:
        raise ValueError(f"rho must be at least 0, got {rho}.")

    def init(params: Params) -> SamState:
        del params
        return SamState(jnp.zeros((), jnp.float32))

    def update(
        updates: Params,
        state: SamState,
        params: Params | None = None,
        *,
        grad_fn: Callable[[Params], Params] | None = None,
        **extra: object,
    ) -> tuple[Params, SamState]:
        del state, extra
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), updates))
        if rho == 0:
            return updates, SamState(norm)
        if params is None or grad_fn is None:
            raise ValueError("sam needs update(..., params, grad_fn=...).")
        scale = rho / (norm + 1e-12)  # As in big_vision; a zero gradient then climbs nowhere.
        worst = jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, updates)
        return grad_fn(worst), SamState(norm)

    return optax.GradientTransformationExtraArgs(init, update)


def ascent_norm(opt_state: object) -> Float[Array, ""] | None:
    """The last ascent norm in the state of any chain with `sam` in it, else None."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, SamState))
    found = [leaf.ascent_norm for leaf in leaves if isinstance(leaf, SamState)]
    return found[0] if found else None


def warmup_cosine(*, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Rises linearly from 0 to `peak` over the warm-up, then falls to 0 at `steps` as a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, end_value=0.0)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum, for teachers (with clipping) and students.

    The order is the one of the SAM authors and of torch: clipping, weight decay added to the
    gradient (so that it enters the momentum), momentum, learning rate. SAM comes before all of
    them: `train.steps.make_supervised_step` has it as `ascent`.

    Args:
        schedule: Learning rate of each step.
        momentum: Decay of the trace, from 0 to below 1.
        nesterov: Whether the momentum looks ahead.
        weight_decay: L2 coefficient on all parameters.
        clip_norm: Largest global norm of the gradient; None leaves it.

    Returns:
        A chain whose `update` takes, and does without, `grad_fn`.
    """
    links = [
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    ]
    return optax.with_extra_args_support(optax.chain(*links))


def adamw(
    schedule: optax.Schedule, *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformationExtraArgs:
    """AdamW with clipping; kernels decay, vectors and embeddings do not (for pretraining)."""

    def kernels(params: Params) -> Params:
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    chain = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b2=0.99, weight_decay=weight_decay, mask=kernels),
    )
    return optax.with_extra_args_support(chain)
