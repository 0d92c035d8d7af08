"""Rotary position embeddings of ViTs: queries and keys of patches are rotated by their position."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KINDS = ("centred", "index", "mixed")
Angles = Float[Array, "head patch pair"]


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
