"""Students with their norms folded into convolutions, or as one operation each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from remem_jax import models
from remem_jax.models import layers
from remem_jax.records import Apply, Variables

BATCH_NORM = "batch_norm"  # What the norm is called in a jaxpr.


class _Pair(NamedTuple):
    """A norm, and the convolution that it follows; paths of both, as in the parameters."""

    conv: tuple[str, ...]
    norm: tuple[str, ...]
    epsilon: float


def make_apply(model: nn.Module, *, whole_norms: bool = False) -> Apply:
    """A student in evaluation mode, whose variables may be folded (`folded`).

    The logits are those of `models.evaluation_apply`, up to rounding.

    Args:
        model: The student.
        whole_norms: Whether each norm is one operation, `batch_norm`, for a reader of the jaxpr.
    """
    plain = models.evaluation_apply(model)
    intercept = functools.partial(_intercept, whole_norms=whole_norms)

    def apply(variables: Variables, images: Array) -> Array:
        with nn.intercept_methods(intercept):
            return plain(variables, images)

    return apply


def folded(model: nn.Module, variables: Variables) -> Variables:
    """Variables without norms: each is folded into the convolution before it, which gets a bias.

    The products are taken in float64 and rounded to float32. Only `make_apply` takes the result.

    Args:
        model: A student, every norm of which follows a convolution.
        variables: Of it.
    """
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(variables)))
    for pair in _pairs(model, variables):
        scale, bias = (flat.pop(("params", *pair.norm, name)) for name in ("scale", "bias"))
        mean, var = (flat.pop(("batch_stats", *pair.norm, name)) for name in ("mean", "var"))
        factor = _double(scale) / np.sqrt(_double(var) + pair.epsilon)
        kernel = ("params", *pair.conv, "kernel")
        before = _double(flat.get(("params", *pair.conv, "bias"), 0.0))
        shift = (before - _double(mean)) * factor + _double(bias)
        flat[kernel] = np.asarray(_double(flat[kernel]) * factor, np.float32)
        flat["params", *pair.conv, "bias"] = np.asarray(shift, np.float32)
    return traverse_util.unflatten_dict(flat)


def folded_shapes(model: nn.Module, shapes: Variables) -> Variables:
    """Shapes of what `folded` makes of variables of these shapes."""
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(shapes)))
    for pair in _pairs(model, shapes):
        bias = flat.pop(("params", *pair.norm, "bias"))
        del flat["params", *pair.norm, "scale"]
        for name in ("mean", "var"):
            del flat["batch_stats", *pair.norm, name]
        flat["params", *pair.conv, "bias"] = bias
    return traverse_util.unflatten_dict(flat)


def _double(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def _pairs(model: nn.Module, variables: Variables) -> list[_Pair]:
    """Which norm follows which convolution, as the model calls them."""
    last: dict[int, tuple[Any, tuple[str, ...]]] = {}  # By the identity of what came out.
    found: list[_Pair] = []

    def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        out = call(*args, **kwargs)
        if isinstance(layer, layers.Conv | layers.DepthwiseConv):
            last[id(out)] = out, layer.path
        if isinstance(layer, layers.BatchNorm):
            found.append(_Pair(last[id(args[0])][1], layer.path, layer.epsilon))
        return out

    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(models.evaluation_apply(model), variables, images)
    return found


def _intercept(
    call: Callable[..., Any], args: Any, kwargs: Any, context: Any, *, whole_norms: bool
) -> Any:
    """A layer as it is, but for norms and for what `folded` has made of them."""
    layer = context.module
    if isinstance(layer, layers.BatchNorm):
        if not layer.has_variable("params", "scale"):
            return args[0]  # Folded.
        if whole_norms:
            return _normalised(layer, args[0])
    out = call(*args, **kwargs)
    if isinstance(layer, layers.DepthwiseConv | layers.Conv) and _has_folded_bias(layer):
        out = out + _by_channel(layer.get_variable("params", "bias"), layer.dtype)
    return out


def _has_folded_bias(layer: layers.Conv | layers.DepthwiseConv) -> bool:
    own = isinstance(layer, layers.Conv) and layer.has_bias
    return not own and layer.has_variable("params", "bias")


def _normalised(layer: layers.BatchNorm, maps: Array) -> Array:
    scale, bias = (layer.get_variable("params", name) for name in ("scale", "bias"))
    mean, var = (layer.get_variable("batch_stats", name) for name in ("mean", "var"))
    given = [jnp.asarray(array, maps.dtype) for array in (scale, bias, mean, var + layer.epsilon)]
    return batch_norm(maps, *given)


@jax.jit
def batch_norm(
    maps: Float[Array, "batch height width channel"],
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    mean: Float[Array, " channel"],
    var: Float[Array, " channel"],
) -> Float[Array, "batch height width channel"]:
    """Maps normalised by running statistics; the epsilon is in the variance."""
    factor, of = scale * jax.lax.rsqrt(var), maps.dtype
    return (maps - _by_channel(mean, of)) * _by_channel(factor, of) + _by_channel(bias, of)


def _by_channel(vector: Any, dtype: Any) -> Array:
    return jnp.asarray(vector, dtype)[None, None, None]
