"""Margins around maps, and the shifted maps that a kernel is applied to."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right), in pixels.


def shifted(
    maps: Float[Array, "batch height width channel"], kernel: int, stride: int, margins: Pads
) -> list[Float[Array, "batch rows columns channel"]]:
    """Returns one map per pixel of a kernel, row by row: the inputs which that pixel multiplies."""
    padded = jnp.pad(maps, ((0, 0), *margins, (0, 0)), constant_values=0.0)
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
