"""Folds BatchNorm layers of students into convolutions, or marks each norm as one operation."""

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
from remem_jax.models import layers, vit
from remem_jax.records import Apply, Variables

BATCH_NORM, LAYER_NORM = "batch_norm", "layer_norm"  # Names of the operations in a jaxpr.


class _Pair(NamedTuple):
    """A BatchNorm and the convolution before it, as paths in the parameters."""

    conv: tuple[str, ...]
    norm: tuple[str, ...]
    epsilon: float


def make_apply(model: nn.Module, *, whole_norms: bool = False) -> Apply:
    """Returns a student in evaluation mode, for variables that may be folded (`folded`).

    The logits are those of `models.evaluation_apply`, up to rounding.

    Args:
        model: The student.
        whole_norms: Whether each norm is one operation of the jaxpr, `batch_norm` or `layer_norm`.
            The blocks of a ViT are then unrolled, because an ONNX graph has no loop.
    """
    if whole_norms and isinstance(model, vit.VisionTransformer):
        model = model.clone(scan=False)
    unfolded = models.evaluation_apply(model)
    intercept = functools.partial(_intercept, whole_norms=whole_norms)

    def apply(variables: Variables, images: Array) -> Array:
        with nn.intercept_methods(intercept):
            return unfolded(variables, images)

    return apply


def folded(model: nn.Module, variables: Variables) -> Variables:
    """Folds each BatchNorm into the convolution before it, which gets a bias.

    Computes in float64 and rounds to float32. Only `make_apply` accepts the result.

    Args:
        model: Student in which every BatchNorm follows a convolution.
        variables: Variables of the student.
    """
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(variables)))
    for pair in _pairs(model, variables):
        scale, bias = (flat.pop(("params", *pair.norm, name)) for name in ("scale", "bias"))
        mean, var = (flat.pop(("batch_stats", *pair.norm, name)) for name in ("mean", "var"))
        factor = _double(scale) / np.sqrt(_double(var) + pair.epsilon)
        kernel = ("params", *pair.conv, "kernel")
        conv_bias = _double(flat.get(("params", *pair.conv, "bias"), 0.0))
        shift = (conv_bias - _double(mean)) * factor + _double(bias)
        flat[kernel] = np.asarray(_double(flat[kernel]) * factor, np.float32)
        flat["params", *pair.conv, "bias"] = np.asarray(shift, np.float32)
    return traverse_util.unflatten_dict(flat)


def folded_shapes(model: nn.Module, shapes: Variables) -> Variables:
    """Returns the shapes of the result of `folded`."""
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
    """Finds the convolution before each BatchNorm by tracing the model."""
    convolutions: dict[int, tuple[Any, tuple[str, ...]]] = {}  # By the id of their output.
    pairs: list[_Pair] = []

    def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        out = call(*args, **kwargs)
        if isinstance(layer, layers.Conv | layers.DepthwiseConv):
            convolutions[id(out)] = out, layer.path
        if isinstance(layer, layers.BatchNorm):
            pairs.append(_Pair(convolutions[id(args[0])][1], layer.path, layer.epsilon))
        return out

    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(models.evaluation_apply(model), variables, images)
    return pairs


def _intercept(
    call: Callable[..., Any], args: Any, kwargs: Any, context: Any, *, whole_norms: bool
) -> Any:
    """Applies a layer, with a folded or whole BatchNorm, and with a folded bias."""
    layer = context.module
    if isinstance(layer, layers.BatchNorm):
        if not layer.has_variable("params", "scale"):
            return args[0]  # Folded.
        if whole_norms:
            return _normalised(layer, args[0])
    if isinstance(layer, nn.LayerNorm) and whole_norms:
        scale, bias = (layer.get_variable("params", name) for name in ("scale", "bias"))
        dtype = jnp.dtype(layer.dtype or jnp.float32)
        epsilon = jnp.asarray(layer.epsilon, jnp.float32)
        return layer_norm(args[0].astype(dtype), scale, bias, epsilon)
    out = call(*args, **kwargs)
    if isinstance(layer, layers.DepthwiseConv | layers.Conv) and _has_folded_bias(layer):
        out = out + _by_channel(layer.get_variable("params", "bias"), layer.dtype)
    return out


def _has_folded_bias(layer: layers.Conv | layers.DepthwiseConv) -> bool:
    has_bias = isinstance(layer, layers.Conv) and layer.has_bias
    return not has_bias and layer.has_variable("params", "bias")


def _normalised(layer: layers.BatchNorm, maps: Array) -> Array:
    scale, bias = (layer.get_variable("params", name) for name in ("scale", "bias"))
    mean, var = (layer.get_variable("batch_stats", name) for name in ("mean", "var"))
    statistics = [
        jnp.asarray(array, maps.dtype) for array in (scale, bias, mean, var + layer.epsilon)
    ]
    return batch_norm(maps, *statistics)


@jax.jit
def batch_norm(
    maps: Float[Array, "batch height width channel"],
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    mean: Float[Array, " channel"],
    var: Float[Array, " channel"],
) -> Float[Array, "batch height width channel"]:
    """Normalises feature maps by running statistics; the variance includes the epsilon."""
    factor, dtype = scale * jax.lax.rsqrt(var), maps.dtype
    centred = maps - _by_channel(mean, dtype)
    return centred * _by_channel(factor, dtype) + _by_channel(bias, dtype)


@jax.jit
def layer_norm(
    tokens: Float[Array, "batch token feature"],
    scale: Float[Array, " feature"],
    bias: Float[Array, " feature"],
    epsilon: Float[Array, ""],
) -> Float[Array, "batch token feature"]:
    """Normalises tokens over their features, in float32."""
    wide = tokens.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    out = centred * jax.lax.rsqrt(var + epsilon) * scale[None, None] + bias[None, None]
    return out.astype(tokens.dtype)


def _by_channel(vector: Any, dtype: Any) -> Array:
    return jnp.asarray(vector, dtype)[None, None, None]
