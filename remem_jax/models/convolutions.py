"""Convolutions and a max-pool, equal to torch's, in the forms that XLA runs fast.

On CPUs, XLA is 70 times too slow for the gradients of a convolution over maps of 2 x 2 pixels,
twice too slow for the kernel's gradient over larger maps, five times for the gradient of a
max-pool, and seven times for a network of depthwise convolutions. Compiled for a CPU, these
operations are matrix products, convolutions of explicitly transposed arrays, a chain of maxima, and
sums of shifted maps. Every other platform gets XLA's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float

from remem_jax import platforms

_NUMBERS = ("NHWC", "HWIO", "NHWC")  # Of maps, kernels and outputs.
_SMALL = 4  # Pixels: the largest side at which a matrix product is the faster convolution.

Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


def convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """The convolution, in the form of the platform that it is compiled for.

    Args:
        maps: What is convolved.
        kernel: Its sides are as long, and odd.
        stride: Step between outputs, in pixels.
        margins: Zeros around the maps, in pixels.
    """
    is_product = kernel.shape[0] == 1 or max(maps.shape[1:3]) <= _SMALL
    on_cpu = _product if is_product else _convolution
    return platforms.dependent(
        maps,
        kernel,
        cpu=lambda maps, kernel: on_cpu(maps, kernel, stride, margins),
        default=lambda maps, kernel: _lax_convolution(maps, kernel, stride, margins, groups=1),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """XLA's convolution, with gradients that XLA cannot fuse with other operations.

    The gradients are convolutions of transposed arrays. XLA's CPU backend fuses each transpose
    with the operations that produce its operand, such as BatchNorm and ReLU, which it then computes
    twice. The fused loop writes several times more slowly than a plain transpose.
    """
    return _lax_convolution(maps, kernel, stride, margins, groups=1)


def _convolution_forward(
    maps: CustomVJPPrimal, kernel: CustomVJPPrimal, stride: int, margins: Pads
) -> tuple[Array, tuple[Array, Array, tuple[()] | None]]:
    # Nobody uses the gradient of images, so it is not computed. Residuals must be arrays; whether
    # the gradient is wanted is encoded in their tree structure.
    wanted = () if maps.perturbed else None
    saved = maps.value, kernel.value, wanted
    return _convolution(*saved[:2], stride, margins), saved


def _convolution_backward(
    stride: int, margins: Pads, saved: tuple[Array, Array, tuple[()] | None], slope: Array
) -> tuple[Array | None, Array]:
    maps, kernel, wanted = saved
    gradient = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=_NUMBERS
    )
    around, inside = [], []  # Padding of the slope (gradient by maps), of the maps (by kernel).
    for (first, _), length, outputs in zip(margins, maps.shape[1:3], slope.shape[1:3], strict=True):
        beyond = (outputs - 1) * stride + 1 - length  # Of the dilated slope, more than the maps.
        around.append((len(kernel) - 1 - first, first - beyond))
        inside.append((first, len(kernel) - 1 - first + beyond))

    def by_maps(slope: Array, kernel: Array) -> Array:
        turned = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
        return gradient(slope, turned, padding=around, lhs_dilation=(stride, stride))

    def by_kernel(maps: Array, slope: Array) -> Array:
        # The sum is over the batch, which takes the place of the channels.
        maps, slope = jnp.transpose(maps, (3, 1, 2, 0)), jnp.transpose(slope, (1, 2, 0, 3))
        found = gradient(maps, slope, padding=inside, rhs_dilation=(stride, stride))
        return jnp.transpose(found, (1, 2, 0, 3))

    scalar = kernel[0, 0, 0, 0]  # Replicated, so that no device waits for another.
    kernel_slope = _unfused(by_kernel, maps, slope, scalar=scalar)
    if wanted is None:
        return None, kernel_slope
    return _unfused(by_maps, slope, kernel, scalar=scalar), kernel_slope


_convolution.defvjp(_convolution_forward, _convolution_backward, symbolic_zeros=True)


def _unfused(
    function: Callable[[Array, Array], Array], *operands: Array, scalar: Float[Array, ""]
) -> Array:
    """Calls a function so that XLA fuses none of it with the operations around it.

    XLA's CPU backend removes optimization barriers before it fuses operations, but it does not fuse
    across a conditional. Both branches are the same function. The predicate depends on data, so XLA
    cannot remove the conditional.
    """
    return jax.lax.cond(scalar == scalar, function, function, *operands)


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
        dimension_numbers=_NUMBERS,
        feature_group_count=groups,
    )


def depthwise(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side 1 channel"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns channel"]:
    """The convolution of every channel with a kernel of its own; see `convolution`."""
    channels = maps.shape[-1]
    return platforms.dependent(
        maps,
        kernel,
        cpu=lambda maps, kernel: _depthwise(maps, kernel, stride, margins),
        default=lambda maps, kernel: _lax_convolution(
            maps, kernel, stride, margins, groups=channels
        ),
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
    first, *others = (m * tap[None, None, None] for m, tap in zip(shifted, taps, strict=True))
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


_POOL_MARGINS: Pads = ((1, 1), (1, 1))


def max_pool(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """Maximum over 3 x 3 pixels with stride 2 and one pixel of padding."""
    return platforms.dependent(maps, cpu=_maxima, default=_max_pool)


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
