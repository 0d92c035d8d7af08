"""Layers of convolutional networks, equal to torch's, in the forms that XLA runs fast.

XLA's CPU backend takes 70 times as long as it should for the gradients of a convolution over
maps of 2 x 2 pixels, five times for those of a max-pool, and seven times for a network of
depthwise convolutions. Compiled for a CPU they are here a matrix product, a chain of maxima, and
sums of shifted maps; for every other platform they are XLA's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax import platforms

PADDINGS = ("torch", "same")
STEMS = ("imagenet", "small")
DTYPES = ("float32", "bfloat16", "float16")
_SMALL = 4  # Pixels: the largest side at which a matrix product is the faster convolution.

Init = nn.initializers.Initializer
Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)

kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def depthwise_kaiming(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Normal of variance 2 / (side * side): Kaiming's for one output channel per input channel."""
    return jax.random.normal(key, shape, dtype) * (2 / (shape[0] * shape[1])) ** 0.5


def uniform_of_fan(features: int) -> Init:
    """Uniform in +- 1 / sqrt(features)."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = features**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def require_float(images: Shaped[Array, "batch height width channel"]) -> None:
    """Refuses images as they are stored."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"The model takes float images in [-1, 1], got {images.dtype}.")


def require_options(**options: Any) -> None:
    """Refuses an unknown `stem`, `padding` or `dtype`, with ValueError."""
    known = {"stem": STEMS, "padding": PADDINGS, "dtype": DTYPES}
    for name, value in options.items():
        given = value if isinstance(value, str) else jnp.dtype(value).name
        if given not in known[name]:
            raise ValueError(f"{name} must be one of {known[name]}, got {value!r}.")


class Conv(nn.Module):
    """A convolution as torch's.

    Attributes:
        features: Channels of the output.
        kernel: Side of the kernel, in pixels; odd.
        stride: Step between outputs, in pixels.
        padding: See `pads`.
        has_bias: Whether a bias is added.
        dtype: Type of the computation; parameters are float32.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: str = "torch"
    has_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns feature"]:
        shape = (self.kernel, self.kernel, maps.shape[-1], self.features)
        kernel = self.param("kernel", kaiming, shape).astype(self.dtype)
        maps = maps.astype(self.dtype)
        margins = pads(maps, self.kernel, self.stride, self.padding)
        out = _convolution(maps, kernel, self.stride, margins)
        if self.has_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out = out + _by_channel(bias.astype(self.dtype))
        return out


class DepthwiseConv(nn.Module):
    """A convolution of every channel with a kernel of its own, without bias.

    Attributes:
        kernel: Side of the kernel, in pixels; odd.
        stride: Step between outputs, in pixels.
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
        return platforms.dependent(
            maps,
            kernel,
            cpu=lambda maps, kernel: _depthwise(maps, kernel, self.stride, margins),
            default=lambda maps, kernel: _lax_convolution(
                maps, kernel, self.stride, margins, groups=channels
            ),
        )


class BatchNorm(nn.Module):
    """Batch normalisation as torch's: in float32, and with an unbiased running variance.

    In training the maps are normalised by the mean and the biased variance of the batch, and
    the running statistics move by 1 - momentum towards the batch's mean and unbiased variance
    (Flax's own layer keeps the biased one). The batch is the whole array, also where it is
    sharded over devices.

    Attributes:
        momentum: What the running statistics keep in a step; torch's is 1 - momentum.
        epsilon: Added to the variance.
        scale_init: First scale.
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
        found: Any = _standardised(maps, scale, bias, running_mean.value, self.epsilon)
        out, mean, var = found
        if not self.is_initializing():
            count = maps.size // maps.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return out


class MaxPool(nn.Module):
    """Maximum over 3 x 3 pixels with stride 2, one pixel of padding: the stem's of a ResNet.

    Where several pixels share the maximum the gradient is split between them; torch gives it to
    the first. Behind a ReLU, where only zeros tie, that makes no difference.
    """

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns channel"]:
        return platforms.dependent(maps, cpu=_maxima, default=_max_pool)


def pads(
    maps: Float[Array, "batch height width channel"], kernel: int, stride: int, padding: str
) -> Pads:
    """Pixels added above and below, left and right of the maps.

    Args:
        maps: What is convolved.
        kernel: Side of the kernel, in pixels.
        stride: Step between outputs, in pixels.
        padding: "torch" for half the kernel on every side; "same" for TensorFlow's SAME, which
            depends on the size and, where the sum is odd, adds one pixel more below and right.
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
    """Normalised maps, their mean and their biased variance; only the maps have a gradient.

    Both sums are taken in one pass, about `shift`: any vector near the mean keeps the digits
    that a difference of large numbers would lose. The backward pass keeps the maps as they came
    and takes two sums, where that of the formula would keep them in float32 and take four.
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
    found: Any = _standardised(maps, scale, bias, shift, epsilon)
    return found, (maps, scale, *found[1:])


def _standardised_backward(
    epsilon: float, saved: tuple[Array, Array, Array, Array], slopes: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, Array]:
    maps, scale, mean, var = saved
    slope, count = slopes[0].astype(jnp.float32), maps.size // maps.shape[-1]
    inverse = jax.lax.rsqrt(var + epsilon)
    standard = (maps.astype(jnp.float32) - _by_channel(mean)) * _by_channel(inverse)
    bias_slope = jnp.sum(slope, axis=(0, 1, 2))
    scale_slope = jnp.sum(slope * standard, axis=(0, 1, 2))
    projected = standard * _by_channel(scale_slope / count) + _by_channel(bias_slope / count)
    out = _by_channel(scale * inverse) * (slope - projected)
    return out.astype(maps.dtype), scale_slope, bias_slope, jnp.zeros_like(mean)


_standardised.defvjp(_standardised_forward, _standardised_backward)


_POOL_MARGINS: Pads = ((1, 1), (1, 1))


def _max_pool(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    padding: Any = _POOL_MARGINS  # Flax says str, and takes pairs too.
    return nn.max_pool(maps, (3, 3), (2, 2), padding=padding)


def _maxima(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """The same over three rows, then over three columns: four maxima rather than eight."""
    padded = jnp.pad(maps, ((0, 0), *_POOL_MARGINS, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((side - 3) // 2 * 2 + 1 for side in padded.shape[1:3])
    tall = [padded[:, top : top + rows : 2] for top in range(3)]
    tall = jnp.maximum(jnp.maximum(tall[0], tall[1]), tall[2])
    wide = [tall[:, :, left : left + columns : 2] for left in range(3)]
    return jnp.maximum(jnp.maximum(wide[0], wide[1]), wide[2])


def _convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """The convolution; on a CPU a product where that is faster."""

    def whole(maps: Array, kernel: Array) -> Array:
        return _lax_convolution(maps, kernel, stride, margins, groups=1)

    if kernel.shape[0] > 1 and max(maps.shape[1:3]) > _SMALL:
        return whole(maps, kernel)
    return platforms.dependent(
        maps,
        kernel,
        cpu=lambda maps, kernel: _product(maps, kernel, stride, margins),
        default=whole,
    )


def _product(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """The convolution as a product of matrices."""
    patches = jnp.concatenate(_shifted(maps, kernel.shape[0], stride, margins), axis=-1)
    # As one matrix; XLA transposes a stack of them for the gradients.
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(*patches.shape[:-1], -1)


def _lax_convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side group feature"],
    stride: int,
    margins: Pads,
    groups: int,
) -> Float[Array, "batch rows columns feature"]:
    return jax.lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        margins,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side 1 channel"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns channel"]:
    """The depthwise convolution as a sum of shifted maps; so are its gradients."""
    taps = kernel.reshape(-1, kernel.shape[-1])
    shifted = _shifted(maps, kernel.shape[0], stride, margins)
    return _weighted_sum(shifted, taps)


def _depthwise_forward(
    maps: Array, kernel: Array, stride: int, margins: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(maps, kernel, stride, margins), (maps, kernel)


def _depthwise_backward(
    stride: int, margins: Pads, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    maps, kernel = saved
    side = kernel.shape[0]
    # One reduction of many operands, since XLA would write every shifted map for a sum of its own.
    products = [(m * slope).astype(jnp.float32) for m in _shifted(maps, side, stride, margins)]
    zeros = [jnp.zeros((), jnp.float32)] * len(products)
    sums = jax.lax.reduce(products, zeros, _added, (0, 1, 2))
    kernel_slope = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)
    # The slope of the maps is the slope of the outputs, spread out by the stride and convolved
    # with the kernel turned round.
    spread: list[tuple[int, int, int]] = [(0, 0, 0)] * 4
    for axis, (before, _) in enumerate(margins, start=1):
        length = (slope.shape[axis] - 1) * stride + 1
        spread[axis] = (side - 1 - before, maps.shape[axis] + before - length, stride - 1)
    padded = jax.lax.pad(slope, jnp.zeros((), slope.dtype), spread)
    taps = kernel.reshape(side * side, -1)[::-1]
    maps_slope = _weighted_sum(_shifted(padded, side, 1, ((0, 0), (0, 0))), taps)
    return maps_slope, kernel_slope


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _added(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _weighted_sum(
    shifted: Sequence[Float[Array, "batch rows columns channel"]],
    taps: Float[Array, "tap channel"],
) -> Float[Array, "batch rows columns channel"]:
    first, *others = (m * _by_channel(tap) for m, tap in zip(shifted, taps, strict=True))
    for other in others:
        first = first + other
    return first


def _shifted(
    maps: Float[Array, "batch height width channel"],
    kernel: int,
    stride: int,
    margins: Pads,
    fill: float = 0.0,
) -> list[Float[Array, "batch rows columns channel"]]:
    """For every pixel of a kernel, row by row, the map that this pixel sees."""
    padded = jnp.pad(maps, ((0, 0), *margins, (0, 0)), constant_values=fill)
    rows, columns = ((side - kernel) // stride + 1 for side in padded.shape[1:3])
    return [
        padded[
            :,
            top : top + stride * (rows - 1) + 1 : stride,
            left : left + stride * (columns - 1) + 1 : stride,
        ]
        for top in range(kernel)
        for left in range(kernel)
    ]
