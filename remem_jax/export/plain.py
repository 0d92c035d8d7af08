"""Students in the operations that runtimes know: convolution, norm, pool, each of them whole.

On a CPU `models.layers` has convolutions and pools as sums of shifted maps, which train fast and
which no runtime would recognise.
"""

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


def make_apply(model: nn.Module, *, whole: bool) -> Apply:
    """A student in evaluation mode, whose variables may be folded (`folded`).

    The logits are those of `models.evaluation_apply`, up to rounding.

    Args:
        model: The student.
        whole: Whether each layer is to be one operation; else it is what runs fast where JAX is.
    """
    plain = models.evaluation_apply(model)

    def apply_whole(variables: Variables, images: Array) -> Array:
        with nn.intercept_methods(_as_operation):
            return plain(variables, images)

    def apply(variables: Variables, images: Array) -> Array:
        with nn.intercept_methods(_but_for_norms):
            return plain(variables, images)

    return apply_whole if whole else apply


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


def _as_operation(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """A layer as one operation; what is none of ours is called as it is."""
    layer = context.module
    if isinstance(layer, layers.Conv | layers.DepthwiseConv):
        return _convolution(layer, args[0])
    if isinstance(layer, layers.BatchNorm):
        return _normalised(layer, args[0])
    if isinstance(layer, layers.MaxPool):
        return _max_pool(args[0])
    return call(*args, **kwargs)


def _but_for_norms(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """A layer as it is, but for what `folded` has made of norms."""
    layer = context.module
    if isinstance(layer, layers.BatchNorm) and not layer.has_variable("params", "scale"):
        return args[0]
    out = call(*args, **kwargs)
    if isinstance(layer, layers.DepthwiseConv | layers.Conv) and _has_folded_bias(layer):
        out = out + _by_channel(layer.get_variable("params", "bias"), layer.dtype)
    return out


def _has_folded_bias(layer: layers.Conv | layers.DepthwiseConv) -> bool:
    own = isinstance(layer, layers.Conv) and layer.has_bias
    return not own and layer.has_variable("params", "bias")


def _convolution(layer: layers.Conv | layers.DepthwiseConv, maps: Array) -> Array:
    margins = layers.pads(maps, layer.kernel, layer.stride, layer.padding)
    depthwise = isinstance(layer, layers.DepthwiseConv)
    out = jax.lax.conv_general_dilated(
        maps.astype(layer.dtype),
        jnp.asarray(layer.get_variable("params", "kernel"), layer.dtype),
        (layer.stride, layer.stride),
        margins,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=maps.shape[-1] if depthwise else 1,
    )
    if layer.has_variable("params", "bias"):
        out = out + _by_channel(layer.get_variable("params", "bias"), layer.dtype)
    return out


def _normalised(layer: layers.BatchNorm, maps: Array) -> Array:
    if not layer.has_variable("params", "scale"):
        return maps  # Folded.
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


def _max_pool(maps: Array) -> Array:
    lowest = np.asarray(-np.inf, maps.dtype)
    margins = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(maps, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), margins)
