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
        qkv_bias: The projections with a bias, by their first letters: "qkv", "qv" or "".
        has_bias: Whether the output projection has a bias.
        qk_norm: Norm of each head's queries, and of its keys; None for none.
        output_norm: Norm before the output projection, over all heads; None for none.
        rope: Rotary positions of queries and keys; None for none.
        prefix: Number of tokens before those of the patches, which are not rotated.
    """

    heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    qkv_bias: str = "qkv"
    has_bias: bool = True
    qk_norm: Norm | None = None
    output_norm: Norm | None = None
    rope: rotary.Rotary | None = None
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
                ("query", queries, "q" in self.qkv_bias),
                ("key", tokens, "k" in self.qkv_bias),
                ("value", tokens, "v" in self.qkv_bias),
            )
        )
        if self.qk_norm:
            query, key = (
                self.qk_norm(f"{name}_norm", self.dtype)(each)
                for name, each in (("query", query), ("key", key))
            )
        if self.rope:
            query, key = self._rotated(self.rope, query, key)
        mixed = dot_product_attention(query, key, value)
        if self.output_norm:
            flat = mixed.reshape(*mixed.shape[:2], width)
            mixed = self.output_norm("norm", self.dtype)(flat).reshape(mixed.shape)
        out = nn.DenseGeneral(width, axis=(-2, -1), use_bias=self.has_bias, name="out", **common)
        return out(mixed)

    def _rotated(self, rope: rotary.Rotary, query: Array, key: Array) -> tuple[Array, Array]:
        """Rotates queries and keys of the patches by their positions."""
        side, features = math.isqrt(query.shape[1] - self.prefix), query.shape[-1]
        if rope.kind == "mixed":
            frequencies = self.param(
                "frequencies",
                lambda _: rotary.initial_frequencies(rope, self.heads, features // 2),
            )
            angles = rotary.mixed_angles(rope, jnp.asarray(frequencies), side)
        else:
            angles = rope.angles(side, features)
        query, key = (rotary.rotate(each, angles, half=rope.half) for each in (query, key))
        return query, key
