"""The multi-head attention layer."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.models import rotary
from remem_jax.models.norms import Norm
from remem_jax.models.operations.attention import dot_product_attention
from remem_jax.models.rematerialisation import kept


class Attention(nn.Module):
    """Multi-head attention, whose parameters have the names and shapes of Flax's.

    Attributes:
        heads: Number of heads; divides the features.
        dtype: Type of the computation.
        kernel_init: Initialiser of the kernels.
        biased: The projections with a bias, by their first letters: "qkv", "qv" or "".
        has_bias: Whether the output projection has a bias.
        query_norm: Norm of each head's queries, and of its keys; None for none.
        output_norm: Norm before the output projection, over all heads; None for none.
        rotation: Rotary positions of queries and keys; None for none.
        prefix: Number of tokens before those of the patches, which are not rotated.
    """

    heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    biased: str = "qkv"
    has_bias: bool = True
    query_norm: Norm | None = None
    output_norm: Norm | None = None
    rotation: rotary.Rotary | None = None
    prefix: int = 0

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch query feature"],
        tokens: Float[Array, "batch token feature"],
    ) -> Float[Array, "batch query feature"]:
        width = queries.shape[-1]
        shape = (self.heads, width // self.heads)
        common: dict[str, Any] = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        query, key, value = (
            kept(name, nn.DenseGeneral(shape, name=name, use_bias=has_bias, **common)(source))
            for name, source, has_bias in (
                ("query", queries, "q" in self.biased),
                ("key", tokens, "k" in self.biased),
                ("value", tokens, "v" in self.biased),
            )
        )
        if self.query_norm:
            query, key = (
                self.query_norm(f"{name}_norm", self.dtype)(each)
                for name, each in (("query", query), ("key", key))
            )
        if self.rotation:
            query, key = self._rotated(self.rotation, query, key)
        mixed = dot_product_attention(query, key, value)
        if self.output_norm:
            flat = mixed.reshape(*mixed.shape[:2], width)
            mixed = self.output_norm("norm", self.dtype)(flat).reshape(mixed.shape)
        out = nn.DenseGeneral(width, axis=(-2, -1), use_bias=self.has_bias, name="out", **common)
        return out(mixed)

    def _rotated(self, rotation: rotary.Rotary, query: Array, key: Array) -> tuple[Array, Array]:
        """Rotates queries and keys of the patches by their positions."""
        side, features = math.isqrt(query.shape[1] - self.prefix), query.shape[-1]
        if rotation.kind == "mixed":
            frequencies = self.param(
                "frequencies",
                lambda _: rotary.initial_frequencies(rotation, self.heads, features // 2),
            )
            angles = rotary.mixed_angles(rotation, jnp.asarray(frequencies), side)
        else:
            angles = rotation.angles(side, features)
        query, key = (rotary.rotate(each, angles, half=rotation.half) for each in (query, key))
        return query, key
