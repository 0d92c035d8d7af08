"""Grouped convolution: each output depends on the maps of its group. Equal to torch's.

On CPUs, XLA's grouped convolution takes three times too long, its gradients many times more, and
matrix products of single groups are too small to be fast.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax import platforms
from remem_jax.models.operations import convolution as dense
from remem_jax.models.operations.shifts import Pads

_CHANNELS = 32  # Channels that are convolved together on a CPU.


def convolution(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side member feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """Convolves each group of channels; see `operations.convolution`.

    Args:
        maps: The maps.
        kernel: A square kernel of an odd side, for maps of as many channels as a group has.
        stride: Step between outputs, in pixels.
        margins: Width of the zeros around the maps.
    """
    groups = maps.shape[-1] // kernel.shape[2]
    return platforms.dependent(
        maps,
        kernel,
        cpu=lambda maps, kernel: _by_parts(maps, kernel, stride, margins),
        default=lambda maps, kernel: dense.xla_convolution(
            maps, kernel, stride, margins, groups=groups
        ),
    )


def _by_parts(
    maps: Float[Array, "batch height width channel"],
    kernel: Float[Array, "side side member feature"],
    stride: int,
    margins: Pads,
) -> Float[Array, "batch rows columns feature"]:
    """CPU: dense convolutions of a few groups each, whose kernels are zero between groups."""
    member = kernel.shape[2]
    features = kernel.shape[3] * member // maps.shape[-1]  # Of a group.
    together = max(_CHANNELS // member, 1)
    outputs = []
    for first in range(0, maps.shape[-1] // member, together):
        inputs = maps[..., first * member : (first + together) * member]
        taps = kernel[..., first * features : (first + together) * features]
        count = inputs.shape[-1] // member
        mask = np.kron(np.eye(count), np.ones((member, features)))[None, None]
        taps = jnp.tile(taps, (1, 1, count, 1)) * jnp.asarray(mask, taps.dtype)
        outputs.append(dense.unfused_convolution(inputs, taps, stride, margins))
    return jnp.concatenate(outputs, axis=-1)
