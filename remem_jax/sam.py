"""Sharpness-aware minimisation (SAM): the ascent, and gradients at the point that it reaches.

`sam` is an optax transformation. The supervised step (`train.steps`) applies it with
`at_worst_point`, because the examples that share an ascent may be only a part of the batch (m in
the SAM paper).

Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from remem_jax.records import Metrics, Params

# (parameters, examples) -> (gradient of the mean loss, (metrics, batch statistics))
Gradient = Callable[[Params, Any], tuple[Params, tuple[Metrics, Params]]]


class SamState(NamedTuple):
    """State of `sam`.

    Attributes:
        ascent_norm: L2 norm of the gradient of the last ascent, for the log.
    """

    ascent_norm: Float[Array, ""]


def sam(rho: float) -> optax.GradientTransformationExtraArgs:
    """Turns the gradient at the parameters into the gradient at the worst point near them.

    The worst point is found to first order: one step of length `rho` up the gradient, in the L2
    norm over all parameters that the transformation sees, in float32. Put it first in a chain:

        optax.chain(sam(0.5), optax.clip_by_global_norm(1.0), optax.sgd(0.03, momentum=0.9))

    The ascent follows the incoming gradient. A zero gradient gives no ascent, and no NaN. The norm
    of the gradient is kept in the state, for the log.

    Args:
        rho: Radius, at least 0; 0 leaves gradients unchanged and costs nothing.

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
            raise ValueError(
                "sam needs update(..., params, grad_fn=...). make_supervised_step takes it as "
                "`ascent`, not in the chain of `tx`."
            )
        scale = rho / (norm + 1e-12)  # As in big_vision; avoids NaN if the gradient is zero.
        worst = jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, updates)
        return grad_fn(worst), SamState(norm)

    return optax.GradientTransformationExtraArgs(init, update)


def ascent_norm(opt_state: object) -> Float[Array, ""] | None:
    """Returns the last ascent norm in the state of a chain with `sam` in it, else None."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, SamState))
    norms = [leaf.ascent_norm for leaf in leaves if isinstance(leaf, SamState)]
    return norms[0] if norms else None


def at_worst_point(
    gradient: Gradient, ascent: optax.GradientTransformationExtraArgs | None, *, looped: bool
) -> Gradient:
    """Returns the gradient at the point that an ascent from the parameters reaches.

    Metrics and batch statistics are those at the parameters themselves; "ascent_norm" is added.

    Args:
        gradient: The plain gradient.
        ascent: `sam(rho)`; None returns the plain gradient.
        looped: Whether the two passes are iterations of one loop. It compiles one pass, and memory
            holds the activations of one, while XLA would otherwise reserve memory for both. This is
            the form for GPUs and TPUs; on CPUs, convolutions in a loop are slow.
    """
    if ascent is None:
        return gradient

    def climb(
        params: Params,
        clean: tuple[Params, tuple[Metrics, Params]],
        grad_fn: Callable[[Params], Params],
    ) -> tuple[Params, tuple[Metrics, Params]]:
        grads, (metrics, statistics) = clean
        grads, state = ascent.update(grads, ascent.init(params), params, grad_fn=grad_fn)
        norm = ascent_norm(state)
        return grads, (metrics if norm is None else {**metrics, "ascent_norm": norm}, statistics)

    def unrolled(params: Params, examples: Any) -> tuple[Params, tuple[Metrics, Params]]:
        clean = gradient(params, examples)
        return climb(params, clean, lambda worst: gradient(worst, examples)[0])

    def in_loop(params: Params, examples: Any) -> tuple[Params, tuple[Metrics, Params]]:
        def one_pass(carry: tuple[Params, Params], _: None) -> tuple[Any, Any]:
            clean = gradient(carry[0], examples)
            # `grad_fn` returns the worst point itself, at which the next pass takes the gradient.
            worst, auxiliary = climb(params, clean, lambda worst: worst)
            return (worst, clean[0]), auxiliary

        first = (params, jax.tree.map(jnp.zeros_like, params))
        (_, grads), auxiliary = jax.lax.scan(one_pass, first, length=2)
        return grads, jax.tree.map(lambda value: value[0], auxiliary)

    return in_loop if looped else unrolled
