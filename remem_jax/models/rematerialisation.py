"""Rematerialisation: which activations are stored for the backward pass, and which recomputed."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

# What the backward pass recomputes: nothing; elementwise operations, norms, the softmax and its
# scores, so that the inputs of matrix products and convolutions are stored; or everything but the
# inputs of blocks. Each stores less than the one before.
RECOMPUTED = ("nothing", "elementwise", "blocks")
# Stored with "elementwise": activations of a block that a later product or norm needs.
_KEPT = (
    *("query", "key", "value", "attention"),  # Before the output projection.
    "residual",  # After the attention.
    "hidden",  # The MLP's hidden layer before its GELU.
    "unscaled",  # The output of a sub-block before its LayerScale, whose gradient needs it.
    *("adapter_input", "adapter_hidden"),
    "convolution",
)
# Flash attention: its output, and the statistics of its softmax.
_FUSED = ("dot_product_attention_fwd_wrapper",)


def kept(name: str, array: Array) -> Array:
    """Names an array, so that it is stored if only elementwise operations are recomputed."""
    if name not in _KEPT:
        raise ValueError(f"The name must be one of {', '.join(_KEPT)}; got {name!r}.")
    return checkpoint_name(array, name)


def checkpointed(
    function: Callable[..., Any], recompute: str, *, in_loop: bool = False
) -> Callable[..., Any]:
    """Wraps a function so that its backward pass recomputes activations.

    Args:
        function: One block.
        recompute: One of `RECOMPUTED`.
        in_loop: Whether the function is the body of a scan. XLA merges nothing across its
            iterations, so the recomputation needs no protection from common subexpression
            elimination.
    """
    if recompute == "nothing":
        return function
    return jax.checkpoint(function, prevent_cse=not in_loop, policy=policy(recompute))


def policy(recompute: str) -> Callable[..., Any]:
    """Returns the policy of `jax.checkpoint` for "elementwise" or "blocks"."""
    if recompute == "blocks":
        return jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(*_KEPT), _is_fused
    )


def _is_fused(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _FUSED
