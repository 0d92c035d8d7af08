"""Convolution, equal to torch's.

On CPUs, XLA takes 70 times too long for the gradients of a convolution over maps of 2 x 2 pixels,
and twice too long for the kernel's gradient over larger maps.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float

from remem_jax import platforms
from remem_jax.models.operations.shifts import Pads, shifted

_NUMBERS = ("NHWC", "HWIO", "NHWC")  # Dimensions of maps, kernels and outputs.
_SMALL = 4  # Largest side, in pixels, of maps that a matrix product convolves faster.


def convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """Convolves maps, in the implementation of the platform that is compiled for.

    Args:
        maps: The maps.
        kernel: A square kernel of an odd side.
        stride: Step between outputs, in pixels.
        margins: Width of the zeros around the maps.
    """
    is_small = kernel.shape[0] == 1 or max(maps.shape[1:3]) <= _SMALL
    on_cpu = _matrix_product if is_small else unfused_convolution
    return platforms.dependent(
        maps,
        kernel,
        cpu=lambda maps, kernel: on_cpu(maps, kernel, stride, margins),
        default=lambda maps, kernel: xla_convolution(maps, kernel, stride, margins, groups=1),
    )


def xla_convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side group feature"],
    stride: int,
    margins: Pads,
    groups: int,
) -> Float[Array, "batch rows columns feature"]:
    """All platforms but CPUs: XLA's convolution."""
    return jax.lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        margins,
        dimension_numbers=_NUMBERS,
        feature_group_count=groups,
    )


def _matrix_product(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """CPU, small maps or kernels: the convolution as one product of matrices."""
    patches = jnp.concatenate(shifted(maps, kernel.shape[0], stride, margins), axis=-1)
    # As one matrix; XLA transposes a stack of them for the gradients.
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(*patches.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def unfused_convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """CPU, larger maps: XLA's convolution, whose gradients are not fused with other operations.

    The gradients are convolutions of transposed arrays. XLA's CPU backend fuses each transpose
    with the operations that produce its operand, such as BatchNorm and ReLU, which it then computes
    twice. The fused loop writes several times more slowly than a plain transpose.
    """
    return xla_convolution(maps, kernel, stride, margins, groups=1)


def _unfused_convolution_forward(
    maps: CustomVJPPrimal, kernel: CustomVJPPrimal, stride: int, margins: Pads
) -> tuple[Array, tuple[Array, Array, tuple[()] | None]]:
    # The gradient with respect to images is not used, so it is not computed. Residuals must be
    # arrays: their tree structure encodes whether the gradient is wanted.
    wanted = () if maps.perturbed else None
    saved = maps.value, kernel.value, wanted
    return unfused_convolution(*saved[:2], stride, margins), saved


def _unfused_convolution_backward(
    stride: int, margins: Pads, saved: tuple[Array, Array, tuple[()] | None], cotangent: Array
) -> tuple[Array | None, Array]:
    maps, kernel, wanted = saved
    gradient = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=_NUMBERS
    )
    # Padding of the cotangent (for the gradient by maps) and of the maps (for that by the kernel).
    around, inside = [], []
    for (first, _), length, outputs in zip(
        margins, maps.shape[1:3], cotangent.shape[1:3], strict=True
    ):
        # Pixels of the dilated cotangent beyond the maps.
        beyond = (outputs - 1) * stride + 1 - length
        around.append((len(kernel) - 1 - first, first - beyond))
        inside.append((first, len(kernel) - 1 - first + beyond))

    def by_maps(cotangent: Array, kernel: Array) -> Array:
        turned = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
        return gradient(cotangent, turned, padding=around, lhs_dilation=(stride, stride))

    def by_kernel(maps: Array, cotangent: Array) -> Array:
        # The sum is over the batch, which takes the place of the channels.
        maps, cotangent = jnp.transpose(maps, (3, 1, 2, 0)), jnp.transpose(cotangent, (1, 2, 0, 3))
        sums = gradient(maps, cotangent, padding=inside, rhs_dilation=(stride, stride))
        return jnp.transpose(sums, (1, 2, 0, 3))

    scalar = kernel[0, 0, 0, 0]  # Replicated, so that no device waits for another.
    kernel_gradient = _unfused(by_kernel, maps, cotangent, scalar=scalar)
    if wanted is None:
        return None, kernel_gradient
    return _unfused(by_maps, cotangent, kernel, scalar=scalar), kernel_gradient


unfused_convolution.defvjp(
    _unfused_convolution_forward, _unfused_convolution_backward, symbolic_zeros=True
)


def _unfused(
    function: Callable[[Array, Array], Array], *operands: Array, scalar: Float[Array, ""]
) -> Array:
    """Calls a function so that XLA does not fuse it with the operations around it.

    XLA's CPU backend removes optimization barriers before it fuses operations, but it does not fuse
    across a conditional. Both branches are the same function. The predicate depends on data, so XLA
    cannot remove the conditional.
    """
    return jax.lax.cond(scalar == scalar, function, function, *operands)
