"""Depthwise convolution: each channel has its own kernel. Equal to torch's.

On CPUs, a network of XLA's depthwise convolutions takes seven times too long.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import platforms
from remem_jax.models.operations.convolution import xla_convolution
from remem_jax.models.operations.shifts import Pads, shifted


def depthwise(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side 1 channel"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns channel"]:
    """Convolves each channel with its own kernel; see `convolution.convolution`."""
    channels = maps.shape[-1]
    return platforms.dependent(
        maps,
        kernel,
        cpu=lambda maps, kernel: _sum_of_shifts(maps, kernel, stride, margins),
        default=lambda maps, kernel: xla_convolution(
            maps, kernel, stride, margins, groups=channels
        ),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sum_of_shifts(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side 1 channel"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns channel"]:
    """CPU: the convolution and its gradients as sums of shifted maps."""
    taps = kernel.reshape(-1, kernel.shape[-1])
    return _weighted_sum(shifted(maps, kernel.shape[0], stride, margins), taps)


def _sum_of_shifts_forward(
    maps: Array, kernel: Array, stride: int, margins: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _sum_of_shifts(maps, kernel, stride, margins), (maps, kernel)


def _sum_of_shifts_backward(
    stride: int, margins: Pads, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    maps, kernel = saved
    side = kernel.shape[0]
    # One reduction of many operands: for separate sums XLA would write every shifted map.
    products = [(m * cotangent).astype(jnp.float32) for m in shifted(maps, side, stride, margins)]
    zeros = [jnp.zeros((), jnp.float32)] * len(products)
    sums = jax.lax.reduce(products, zeros, _added, (0, 1, 2))
    kernel_gradient = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)
    # The gradient of the maps is the cotangent of the outputs, dilated by the stride and convolved
    # with the kernel rotated by 180 degrees.
    dilation: list[tuple[int, int, int]] = [(0, 0, 0)] * 4
    for axis, (before, _) in enumerate(margins, start=1):
        length = (cotangent.shape[axis] - 1) * stride + 1
        dilation[axis] = (side - 1 - before, maps.shape[axis] + before - length, stride - 1)
    padded = jax.lax.pad(cotangent, jnp.zeros((), cotangent.dtype), dilation)
    taps = kernel.reshape(side * side, -1)[::-1]
    maps_gradient = _weighted_sum(shifted(padded, side, 1, ((0, 0), (0, 0))), taps)
    return maps_gradient, kernel_gradient


_sum_of_shifts.defvjp(_sum_of_shifts_forward, _sum_of_shifts_backward)


def _added(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _weighted_sum(
    maps: Sequence[Float[Array, "batch rows columns channel"]],
    taps: Float[Array, "tap channel"],
) -> Float[Array, "batch rows columns channel"]:
    first, *others = (m * tap[None, None, None] for m, tap in zip(maps, taps, strict=True))
    for other in others:
        first = first + other
    return first
