"""Average pooling over 2 x 2 pixels, equal to torch's with `ceil_mode` and without padding.

On CPUs, the gradient of XLA's pooling is slow: it pads and sums windows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax import platforms

NAME = "average_pool"  # Name of the operation in a jaxpr.


@jax.jit
def average_pool(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """Returns the means over 2 x 2 pixels, with stride 2.

    If a side is odd, the last means are over the pixels that are left.
    """
    height, width = maps.shape[1:3]
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    padded = jnp.pad(maps, odd, constant_values=0.0)
    sums = platforms.dependent(padded, cpu=_sums_of_axes, default=_xla_sums)
    if not height % 2 and not width % 2:
        return sums * 0.25
    ones = jnp.pad(jnp.ones((1, height, width, 1), maps.dtype), odd, constant_values=0.0)
    return sums / jnp.broadcast_to(_sums_of_axes(ones), sums.shape)


def _xla_sums(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """All platforms but CPUs: XLA's windows."""
    zero = np.zeros((), maps.dtype)  # Not a traced value, so that JAX differentiates the sums.
    return jax.lax.reduce_window(maps, zero, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _sums_of_axes(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """CPU: the sums over two axes of a reshaped array, whose gradient is a broadcast."""
    batch, height, width, channels = maps.shape
    pairs = maps.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.sum(pairs, axis=(2, 4))
