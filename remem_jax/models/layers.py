"""Layers of convolutional networks, equal to torch's."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.models.operations import average_pool, convolution, depthwise, grouped, max_pool
from remem_jax.models.operations.shifts import Pads

PADDINGS = ("torch", "same")
STEMS = ("imagenet", "small")
DTYPES = ("float32", "bfloat16", "float16")

Init = nn.initializers.Initializer


def relu6(maps: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns min(max(maps, 0), 6); its gradient at 0 is 0, as torch's (that of Flax's is 1/2)."""
    return jnp.minimum(nn.relu(maps), 6.0)


def hard_sigmoid(maps: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns relu6(maps + 3) / 6, the piecewise linear sigmoid of MobileNetV3."""
    return relu6(maps + 3.0) / 6.0


def hard_swish(maps: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns maps * hard_sigmoid(maps), the swish of MobileNetV3."""
    return maps * hard_sigmoid(maps)


ACTIVATIONS = {"relu": nn.relu, "relu6": relu6, "silu": nn.silu, "hard_swish": hard_swish}
GATES = {"sigmoid": nn.sigmoid, "hard_sigmoid": hard_sigmoid}

kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def depthwise_kaiming(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Initialises with variance 2 / (side * side): Kaiming's for one output channel per input."""
    return jax.random.normal(key, shape, dtype) * (2 / (shape[0] * shape[1])) ** 0.5


def _grouped_kaiming(groups: int) -> Init:
    """Returns Kaiming's initialiser for a convolution whose inputs reach `1 / groups` outputs."""
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def uniform_of_fan(features: int) -> Init:
    """Returns an initialiser, uniform in +- 1 / sqrt(features)."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = features**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def require_float(images: Shaped[Array, "batch height width channel"]) -> None:
    """Raises `TypeError` for images of integers, as they are stored."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"The model takes float images in [-1, 1], got {images.dtype}.")


def require_options(**options: Any) -> None:
    """Raises `ValueError` for an unknown `stem`, `padding` or `dtype`."""
    known = {"stem": STEMS, "padding": PADDINGS, "dtype": DTYPES}
    for name, value in options.items():
        given = value if isinstance(value, str) else jnp.dtype(value).name
        if given not in known[name]:
            raise ValueError(f"{name} must be one of {known[name]}, got {value!r}.")


class Conv(nn.Module):
    """A convolution, equal to torch's.

    Attributes:
        features: Channels of the output.
        kernel: Side of the kernel, in pixels; odd.
        stride: Stride, in pixels.
        padding: See `pads`.
        has_bias: Whether a bias is added.
        dtype: Type of the computation; parameters are float32.
        groups: Number of groups that the channels of maps and output are divided into; each output
            depends on the maps of its group.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: str = "torch"
    has_bias: bool = False
    dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns feature"]:
        shape = (self.kernel, self.kernel, maps.shape[-1] // self.groups, self.features)
        init = kaiming if self.groups == 1 else _grouped_kaiming(self.groups)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        maps = maps.astype(self.dtype)
        margins = pads(maps, self.kernel, self.stride, self.padding)
        if self.groups == 1:
            out = convolution.convolution(maps, kernel, self.stride, margins)
        else:
            out = grouped.convolution(maps, kernel, self.stride, margins)
        if self.has_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out = out + _by_channel(bias.astype(self.dtype))
        return out


class DepthwiseConv(nn.Module):
    """A depthwise convolution: each channel has its own kernel. It has no bias.

    Attributes:
        kernel: Side of the kernel, in pixels; odd.
        stride: Stride, in pixels.
        padding: See `pads`.
        dtype: Type of the computation; parameters are float32.
    """

    kernel: int
    stride: int = 1
    padding: str = "torch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns channel"]:
        channels = maps.shape[-1]
        shape = (self.kernel, self.kernel, 1, channels)
        kernel = self.param("kernel", depthwise_kaiming, shape).astype(self.dtype)
        maps = maps.astype(self.dtype)
        margins = pads(maps, self.kernel, self.stride, self.padding)
        return depthwise.depthwise(maps, kernel, self.stride, margins)


class BatchNorm(nn.Module):
    """Batch normalisation, equal to torch's: in float32, with an unbiased running variance.

    In training, the maps are normalised by the mean and the biased variance of the batch, and the
    running statistics move by 1 - momentum towards the batch's mean and unbiased variance (Flax's
    layer uses the biased one). The batch is the whole array, even if it is sharded over devices.

    Attributes:
        momentum: Share of the running statistics that is kept in a step; torch's momentum is 1
            minus this.
        epsilon: Added to the variance.
        scale_init: Initialiser of the scale.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Init = nn.initializers.ones

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch height width channel"]:
        shape = (maps.shape[-1],)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            out = maps.astype(jnp.float32) - _by_channel(running_mean.value)
            return (out * _by_channel(factor) + _by_channel(bias)).astype(maps.dtype)
        normalised: Any = _standardised(maps, scale, bias, running_mean.value, self.epsilon)
        out, mean, var = normalised
        if not self.is_initializing():
            count = maps.size // maps.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return out


class MaxPool(nn.Module):
    """The maximum over 3 x 3 pixels with stride 2 and one pixel of padding, of a ResNet's stem.

    If several pixels share the maximum, the gradient is divided between them; torch gives it to the
    first. After a ReLU this makes no difference, because only zeros can tie.
    """

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns channel"]:
        return max_pool.max_pool(maps)


class AveragePool(nn.Module):
    """The mean over 2 x 2 pixels with stride 2, before the projections of a ResNet-D."""

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns channel"]:
        return average_pool.average_pool(maps)


def drop_path(rate: float, *, train: bool) -> nn.Dropout:
    """Returns stochastic depth: in training, the maps of a share `rate` of the images are zero."""
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)


def pads(
    maps: Float[Array, "batch height width channel"], kernel: int, stride: int, padding: str
) -> Pads:
    """Returns the widths of the zeros above and below, left and right of the maps.

    Args:
        maps: The maps to convolve.
        kernel: Side of the kernel, in pixels.
        stride: Stride, in pixels.
        padding: "torch" for half the kernel on every side; "same" for TensorFlow's SAME, which
            depends on the size of the maps. If the sum is odd, the extra pixel is below and right.
    """
    if padding == "torch":
        return (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)
    sums = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in maps.shape[1:3]]
    top, left = (n // 2 for n in sums)
    return (top, sums[0] - top), (left, sums[1] - left)


def _by_channel(vector: Float[Array, " channel"]) -> Float[Array, "1 1 1 channel"]:
    return vector[None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _standardised(
    maps: Float[Array, "batch height width channel"],
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    shift: Float[Array, " channel"],
    epsilon: float,
) -> tuple[
    Float[Array, "batch height width channel"], Float[Array, " channel"], Float[Array, " channel"]
]:
    """Returns normalised maps, their mean and biased variance; only the maps have a gradient.

    Both sums are taken in one pass, relative to `shift`: any vector near the mean avoids the
    cancellation of large numbers. The backward pass stores the maps in their own type and takes two
    sums; automatic differentiation would store them in float32 and take four.
    """
    wide = maps.astype(jnp.float32)
    centred = wide - _by_channel(shift)
    mean = jnp.mean(centred, axis=(0, 1, 2))
    var = jnp.maximum(jnp.mean(jnp.square(centred), axis=(0, 1, 2)) - jnp.square(mean), 0)
    mean = mean + shift
    factor = scale * jax.lax.rsqrt(var + epsilon)
    out = (wide - _by_channel(mean)) * _by_channel(factor) + _by_channel(bias)
    return out.astype(maps.dtype), mean, var


def _standardised_forward(
    maps: Array, scale: Array, bias: Array, shift: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    outputs: Any = _standardised(maps, scale, bias, shift, epsilon)
    return outputs, (maps, scale, *outputs[1:])


def _standardised_backward(
    epsilon: float, saved: tuple[Array, Array, Array, Array], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, Array]:
    maps, scale, mean, var = saved
    cotangent, count = cotangents[0].astype(jnp.float32), maps.size // maps.shape[-1]
    inverse = jax.lax.rsqrt(var + epsilon)
    standard = (maps.astype(jnp.float32) - _by_channel(mean)) * _by_channel(inverse)
    bias_gradient = jnp.sum(cotangent, axis=(0, 1, 2))
    scale_gradient = jnp.sum(cotangent * standard, axis=(0, 1, 2))
    projected = standard * _by_channel(scale_gradient / count) + _by_channel(bias_gradient / count)
    out = _by_channel(scale * inverse) * (cotangent - projected)
    return out.astype(maps.dtype), scale_gradient, bias_gradient, jnp.zeros_like(mean)


_standardised.defvjp(_standardised_forward, _standardised_backward)
