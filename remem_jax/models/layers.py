"""Layers of convolutional networks, in the forms that XLA runs fast.

XLA's CPU backend takes 70 times as long as it should for the gradients of a convolution over
maps of 2 x 2 pixels, and five times for those of a max-pool; a residual network on small images
has both. Here they are a matrix product and a chain of maxima.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SMALL = 3  # Pixels: the largest side at which a matrix product is the faster convolution.

kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A convolution without bias, padded by half its kernel on every side, as torch pads it.

    Attributes:
        features: Channels of the output.
        kernel: Side of the kernel, in pixels; odd.
        stride: Step between outputs, in pixels.
    """

    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch rows columns feature"]:
        shape = (self.kernel, self.kernel, maps.shape[-1], self.features)
        kernel = self.param("kernel", kaiming, shape)
        on_cpu = jax.default_backend() == "cpu"
        if on_cpu and self.kernel > 1 and max(maps.shape[1:3]) <= _SMALL:
            return _conv_as_product(maps, kernel, self.stride)
        return jax.lax.conv_general_dilated(
            maps,
            kernel,
            (self.stride, self.stride),
            [(self.kernel // 2, self.kernel // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _conv_as_product(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side channel feature"],
    stride: int,
) -> Float[Array, "batch rows columns feature"]:
    """The convolution as a product of all patches with the kernel."""
    patches = jnp.concatenate(_shifted(maps, kernel.shape[0], stride, 0.0), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def max_pool(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """Maximum over 3 x 3 pixels with stride 2, one pixel of padding: the stem's of a ResNet.

    Where several pixels share the maximum the gradient is split between them; torch gives it to
    the first. Behind a ReLU, where only zeros tie, that makes no difference.
    """
    if jax.default_backend() != "cpu":
        padding: Any = ((1, 1), (1, 1))  # Flax says str, and takes pairs too.
        return nn.max_pool(maps, (3, 3), (2, 2), padding=padding)
    first, *others = _shifted(maps, 3, 2, -jnp.inf)
    for other in others:
        first = jnp.maximum(first, other)
    return first


def _shifted(
    maps: Float[Array, "batch height width channel"], kernel: int, stride: int, fill: float
) -> list[Float[Array, "batch rows columns channel"]]:
    """For every pixel of a kernel, row by row, the map that this pixel sees."""
    pad = kernel // 2
    rows, columns = (-(-side // stride) for side in maps.shape[1:3])
    padded = jnp.pad(maps, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    return [
        padded[
            :,
            top : top + stride * (rows - 1) + 1 : stride,
            left : left + stride * (columns - 1) + 1 : stride,
        ]
        for top in range(kernel)
        for left in range(kernel)
    ]
