"""Rotary position embeddings of ViTs: queries and keys of patches are rotated by their position."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KINDS = ("centred", "index", "mixed")
Angles = Float[Array, "#head patch pair"]  # One head: the same for all.


class Rotary(NamedTuple):
    """How the patches of a ViT are rotated.

    Half of the pairs of a head's features turn with the row, the other half with the column.

    Attributes:
        kind: "centred": positions are those of patch centres in [-1, 1], and frequencies are
            2 pi / base**(2 i / n), as in DINOv3. "index": positions are indices of patches, and
            frequencies base**(-2 i / n), as in EVA-02. "mixed": the frequencies of both axes are
            parameters of each block and head, as in RoPE-ViT. n is half of a head's features.
        base: Ratio of the longest period to the shortest, nearly; unused if `kind` is "mixed".
        half: Whether feature i is paired with feature i + half of the features; otherwise, with its
            neighbour.
        column_first: Whether the first pairs turn with the column; otherwise, with the row.
        offset: Added to indices.
        reference: Number of patches on a side that indices are scaled to; 0 scales nothing.

    Source: Siméoni et al. 2025, https://arxiv.org/abs/2508.10104 (DINOv3); Fang et al. 2023,
    https://arxiv.org/abs/2303.11331 (EVA-02); Heo et al. 2024, https://arxiv.org/abs/2403.13298
    (RoPE-ViT).
    """

    kind: str
    base: float = 100.0
    half: bool = False
    column_first: bool = False
    offset: float = 0.0
    reference: int = 0

    def frequencies(self, pairs: int) -> np.ndarray:
        """Returns the frequencies of the pairs of features that turn with one axis.

        Args:
            pairs: Their number: a quarter of a head's features.

        Returns:
            A float64 array (pairs,), in radians for one unit of a position.
        """
        return self.base ** -(np.arange(pairs) / pairs)

    def positions(self, side: int) -> np.ndarray:
        """Returns the positions along one axis of a square grid, in radians at frequency 1.

        Args:
            side: Number of patches on a side.
        """
        indices = np.arange(side, dtype=np.float64)
        if self.kind == "centred":
            return 2 * math.pi * (2 * (indices + 0.5) / side - 1)
        return (indices + self.offset) * (self.reference / side if self.reference else 1)

    def angles(self, side: int, features: int) -> Angles:
        """Returns the angles of all patches, row by row, for kinds other than "mixed".

        Args:
            side: Number of patches on a side.
            features: Number of features of a head.

        Returns:
            float32 angles (1, patch, pair), in radians, the same for all heads.
        """
        rates = self.frequencies(features // 4)
        axes = [axis.reshape(-1, 1) * rates for axis in self.grid(side)]
        return jnp.asarray(np.concatenate(axes, axis=1)[None], jnp.float32)

    def grid(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of all patches on the first and the second axis, row by row."""
        along = self.positions(side)
        rows, columns = (axis.reshape(-1) for axis in np.meshgrid(along, along, indexing="ij"))
        return (columns, rows) if self.column_first else (rows, columns)


def mixed_angles(rotary: Rotary, frequencies: Float[Array, "axis head pair"], side: int) -> Angles:
    """Returns the angles of all patches and heads, given the frequencies of both axes."""
    first, second = (jnp.asarray(axis, jnp.float32)[None, :, None] for axis in rotary.grid(side))
    return first * frequencies[0][:, None] + second * frequencies[1][:, None]


def initial_frequencies(rotary: Rotary, heads: int, pairs: int) -> Float[Array, "axis head pair"]:
    """Returns the frequencies that "mixed" starts from: half of the pairs turn with each axis."""
    rates, none = rotary.frequencies(pairs // 2), np.zeros(pairs // 2)
    axes = np.stack([np.concatenate([rates, none]), np.concatenate([none, rates])])
    return jnp.broadcast_to(jnp.asarray(axes, jnp.float32)[:, None], (2, heads, pairs))


def rotate(
    features: Float[Array, "batch token head feature"], angles: Angles, *, half: bool
) -> Float[Array, "batch token head feature"]:
    """Rotates the pairs of features of the last tokens, in float32.

    Args:
        features: Queries or keys. The first tokens, for which there are no angles, stay unchanged.
        angles: Angles of the patches.
        half: See `Rotary`.
    """
    first = features.shape[1] - angles.shape[1]
    wide = features[:, first:].astype(jnp.float32)
    cosines, sines = (f(jnp.swapaxes(angles, 0, 1))[None] for f in (jnp.cos, jnp.sin))
    cosines, sines = (
        jnp.broadcast_to(part, (*wide.shape[:-1], wide.shape[-1] // 2)) for part in (cosines, sines)
    )
    if half:
        left, right = jnp.split(wide, 2, axis=-1)
    else:
        left, right = wide[..., ::2], wide[..., 1::2]
    turned: Any = (left * cosines - right * sines, right * cosines + left * sines)
    whole = jnp.concatenate(turned, axis=-1) if half else jnp.stack(turned, -1).reshape(wide.shape)
    whole = whole.astype(features.dtype)
    return jnp.concatenate([features[:, :first], whole], axis=1) if first else whole
