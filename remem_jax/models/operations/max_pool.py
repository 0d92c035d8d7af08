"""Max-pool of a ResNet's stem, equal to torch's.

On CPUs, the gradient of XLA's max-pool takes five times too long.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import platforms
from remem_jax.models.operations.shifts import Pads

_MARGINS: Pads = ((1, 1), (1, 1))


def max_pool(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """Returns the maxima over 3 x 3 pixels, with stride 2 and one pixel of padding."""
    return platforms.dependent(maps, cpu=_chain_of_maxima, default=_xla_max_pool)


def _xla_max_pool(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """All platforms but CPUs: XLA's max-pool."""
    padding: Any = _MARGINS  # Flax annotates str, and takes pairs too.
    return nn.max_pool(maps, (3, 3), (2, 2), padding=padding)


def _chain_of_maxima(
    maps: Float[Array, "batch height width channel"],
) -> Float[Array, "batch rows columns channel"]:
    """CPU: the maxima over three rows, then over three columns; four operations, not eight."""
    padded = jnp.pad(maps, ((0, 0), *_MARGINS, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((side - 3) // 2 * 2 + 1 for side in padded.shape[1:3])
    tall = [padded[:, top : top + rows : 2] for top in range(3)]
    tall = jnp.maximum(jnp.maximum(tall[0], tall[1]), tall[2])
    wide = [tall[:, :, left : left + columns : 2] for left in range(3)]
    return jnp.maximum(jnp.maximum(wide[0], wide[1]), wide[2])
