"""Which activations of a model a backward pass finds stored, and which it computes again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

# In the order of what they store: everything; what matrix products and convolutions need, so that
# only elementwise operations, norms, the softmax and its scores are computed again; of each block
# its input alone.
RECOMPUTED = ("nothing", "elementwise", "blocks")
# Outputs that a product or a norm behind them needs, of one block.
_KEPT = (
    *("query", "key", "value", "attention"),  # Before the projection of the output.
    "residual",  # After the attention.
    "hidden",  # Of the MLP, before its GELU.
    *("adapter_input", "adapter_hidden"),
    "convolution",
)
# Attention that is one kernel: its output, and the statistics of its softmax.
_FUSED = ("dot_product_attention_fwd_wrapper",)


def kept(name: str, array: Array) -> Array:
    """The same array, stored where elementwise operations are computed again."""
    if name not in _KEPT:
        raise ValueError(f"{name!r} is none of {', '.join(_KEPT)}.")
    return checkpoint_name(array, name)


def checkpointed(
    function: Callable[..., Any], recompute: str, *, in_loop: bool = False
) -> Callable[..., Any]:
    """A function whose backward pass computes again what `recompute` says.

    Args:
        function: One block: from what it is given to what it gives.
        recompute: Of `RECOMPUTED`.
        in_loop: Whether it is the body of a scan, across whose iterations XLA merges nothing, so
            that nothing has to keep it from merging both passes.
    """
    if recompute == "nothing":
        return function
    return jax.checkpoint(function, prevent_cse=not in_loop, policy=policy(recompute))


def policy(recompute: str) -> Callable[..., Any]:
    """What `jax.checkpoint` stores, for "elementwise" or "blocks"."""
    if recompute == "blocks":
        return jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(*_KEPT), _is_fused
    )


def _is_fused(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _FUSED
