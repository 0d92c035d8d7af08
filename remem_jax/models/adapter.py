"""Adapters: small residual MLPs after the sub-blocks of a frozen ViT.

They wrap the calls of the model's modules, so they suit any ViT: `add` adds their parameters to the
tree, inside those of the module that they follow, and `wrap` makes the model use them. In ViTs with
LayerScale they act before it, so that it scales what they add too.

Source: Houlsby et al. 2019, https://arxiv.org/abs/1902.00751 (after attention and MLP); Pfeiffer
et al. 2021, https://arxiv.org/abs/2005.00247 (after the MLP alone).
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from remem_jax.checks import at_least, one_of, require
from remem_jax.models.rematerialisation import kept
from remem_jax.records import Key, Params

NAME = "Adapter_0"
# The sub-blocks of an encoder block, and the last layer of each.
_LAST = {"MultiHeadDotProductAttention_1": "out", "MlpBlock_3": "Dense_1"}
PLACEMENTS = {
    "houlsby": ("MultiHeadDotProductAttention_1", "MlpBlock_3"),
    "pfeiffer": ("MlpBlock_3",),
}

P = ParamSpec("P")
T = TypeVar("T")


class Adapter(nn.Module):
    """Down-projection, GELU, up-projection and residual; at first it is the identity.

    The GELU is by tanh, as in the code of Houlsby et al., and the standard deviation of the
    down-projection is that of their Section 3. Differs from the paper: the up-projection starts
    at zero, not near it, so that fine-tuning starts from exactly the pretrained network.

    Attributes:
        hidden: Width of the bottleneck.
    """

    hidden: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch token feature"]:
        features, dtype = tokens.shape[-1], tokens.dtype
        init = nn.initializers.truncated_normal(1e-2)
        tokens = kept("adapter_input", tokens)
        hidden = nn.Dense(self.hidden, dtype=dtype, kernel_init=init, name="down")(tokens)
        hidden = kept("adapter_hidden", hidden)
        up = nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros, name="up")
        return tokens + up(nn.gelu(hidden))


def check(placement: str, reduction: int) -> None:
    """Raises `ValueError` if the placement is unknown or the reduction is below 1."""
    one_of("placement", placement, PLACEMENTS)
    at_least("reduction", reduction, 1)


def add(params: Params, key: Key, *, placement: str, reduction: int = 16) -> Params:
    """Adds an `Adapter_0` to the parameters of the sub-blocks of every encoder block.

    Args:
        params: Parameters of a ViT.
        key: Random key of the down-projections.
        placement: One of `PLACEMENTS`.
        reduction: Ratio of the features to the width of the bottleneck, which is rounded down.

    Raises:
        ValueError: If the placement is unknown, no block has such a sub-block, or the reduction
            is below 1 or leaves no bottleneck.
    """
    check(placement, reduction)
    flat: Any = traverse_util.flatten_dict(params)
    kernels = sorted(path for path in flat if _ends_sub_block(path, PLACEMENTS[placement]))
    require(len(kernels) > 0, f"placement {placement!r}: no encoder block has such a sub-block.")
    for path, adapter_key in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        features = flat[path].shape[-1]
        require(
            reduction <= features,
            f"reduction must be at most the {features} features of the model, got {reduction}.",
        )
        new = Adapter(features // reduction).init(adapter_key, jnp.zeros((1, 1, features)))[
            "params"
        ]
        for name, leaf in traverse_util.flatten_dict(new).items():
            flat[(*path[:-2], NAME, *name)] = leaf
    return traverse_util.unflatten_dict(flat)


def wrap(apply: Callable[P, T]) -> Callable[P, T]:
    """Wraps an apply function so that it uses the adapters among the parameters, if there are any.

    Args:
        apply: Applies a model. It must not be jitted yet, because tracing inserts the adapters.

    Returns:
        A function with the arguments and the result of `apply`.
    """

    @functools.wraps(apply)
    def adapted(*args: P.args, **kwargs: P.kwargs) -> T:
        with nn.intercept_methods(_adapt):
            return apply(*args, **kwargs)

    return adapted


def _adapt(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Calls a method of any module, and then the adapter of the module if it has one."""
    out, module = call(*args, **kwargs), context.module
    if context.method_name != "__call__" or module.name not in _LAST:
        return out
    params = module.get_variable("params", NAME)
    if params is None:
        return out
    return Adapter(params["down"]["kernel"].shape[-1], parent=None).apply({"params": params}, out)


def _ends_sub_block(path: tuple[str, ...], sub_blocks: tuple[str, ...]) -> bool:
    """Returns whether a path is that of the last kernel of one of the sub-blocks."""
    return any(
        path[-3:] == (sub_block, _LAST[sub_block], "kernel")
        and any(name.startswith("encoderblock_") for name in path[:-3])
        for sub_block in sub_blocks
    )
