"""Schedules and optimisers; SAM is in `sam`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from remem_jax.records import Params

OPTIMIZERS = ("sgd", "adamw")
# Parameters without weight decay, by the last part of their names.
_SPARED = ("bias", "scale", "cls", "pos_embedding", "probe")


def warmup_cosine(*, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Builds a schedule: linear from 0 to `peak` in the warm-up, then a cosine to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, end_value=0.0)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Builds SGD with momentum, for teachers (with clipping) and students.

    The order is that of the SAM authors and of torch: clipping, weight decay added to the
    gradient (so that it enters the momentum), momentum, learning rate. SAM comes before all of
    them, as `ascent` of `train.steps.make_supervised_step`.

    Args:
        schedule: Learning rate by step.
        momentum: Decay of the trace, from 0 to below 1.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: L2 coefficient on all parameters.
        clip_norm: Maximum global norm of the gradient; None for no clipping.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def adamw(
    schedule: optax.Schedule,
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Builds AdamW, equal to torch's, with clipping before it.

    Weight decay is decoupled: a step subtracts the learning rate times `weight_decay` of a
    parameter. As in timm, it spares vectors (biases, norms) and embeddings of tokens.

    Args:
        schedule: Learning rate by step.
        betas: Decay of the means of the gradient and of its square, from 0 to below 1.
        epsilon: Added to the root of the second mean, above 0.
        weight_decay: Weight decay, at least 0.
        clip_norm: Maximum global norm of the gradient; None for no clipping.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.
    """
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    adam = optax.adamw(schedule, *betas, epsilon, weight_decay=weight_decay, mask=_decayed)
    return optax.chain(*clip, adam)


def _decayed(params: Params) -> Params:
    """Returns which parameters decay; stacked vectors of a ViT's blocks have two axes."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaf.ndim > 1 and path[-1].key not in _SPARED, params
    )


class HeadFirst(NamedTuple):
    """State of `head_first`.

    Attributes:
        step: Number of steps done.
        inner: State of the optimiser.
    """

    step: Int[Array, ""]
    inner: Any


def head_first(
    probe: optax.GradientTransformation,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    is_head: Callable[[str], bool],
) -> optax.GradientTransformation:
    """Trains the head alone for some steps, and then all parameters, with a fresh optimiser.

    In these steps, the other parameters have no gradient and no weight decay.

    Args:
        probe: The optimiser of these steps, whose state has the structure of that of `tx`.
        tx: The optimiser of all later steps.
        steps: Number of steps of the head alone.
        is_head: Returns whether the parameter of a slash-joined name belongs to the head.

    Source: Kumar et al. 2022, https://arxiv.org/abs/2202.10054 (linear probing, then fine-tuning).
    """

    def of_head(tree: Params) -> Params:
        def kept(path: Any, leaf: Array) -> Array:
            name = "/".join(key.key for key in path)
            return leaf if is_head(name) else jnp.zeros_like(leaf)

        return jax.tree.map_with_path(kept, tree)

    def init(params: Params) -> HeadFirst:
        return HeadFirst(jnp.zeros((), jnp.int32), tx.init(params))

    def update(
        grads: Params, state: HeadFirst, params: Params | None = None, **extra: Any
    ) -> tuple[Params, HeadFirst]:
        del extra
        if params is None:
            raise ValueError("head_first needs update(..., params).")

        def probing() -> tuple[Params, Any]:
            return probe.update(of_head(grads), state.inner, of_head(params))

        def tuning() -> tuple[Params, Any]:
            begins = state.step == steps
            fresh = jax.tree.map(
                lambda new, old: jnp.where(begins, new, old), tx.init(params), state.inner
            )
            return tx.update(grads, fresh, params)

        updates, inner = jax.lax.cond(state.step < steps, probing, tuning)
        return updates, HeadFirst(state.step + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def scaled(
    tx: optax.GradientTransformation, factors: Callable[[Params], Params]
) -> optax.GradientTransformation:
    """Multiplies each parameter's learning rate, and so its decoupled weight decay, by a factor.

    Args:
        tx: An optimiser whose updates are proportional to its learning rate.
        factors: Returns, for parameters, a tree of numbers or of arrays that multiply them.

    Returns:
        The optimiser; its state is that of `tx`.
    """

    def update(
        grads: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
        return jax.tree.map(lambda x, factor: factor * x, updates, factors(updates)), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
