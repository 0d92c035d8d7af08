"""The multi-head attention layer."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from remem_jax.models.operations.attention import dot_product_attention
from remem_jax.models.rematerialisation import kept


class Attention(nn.Module):
    """Multi-head attention, whose parameters have the names and shapes of Flax's.

    Attributes:
        heads: Number of heads; divides the features.
        dtype: Type of the computation.
        kernel_init: Initialiser of the kernels.
    """

    heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

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
            kept(name, nn.DenseGeneral(shape, name=name, **common)(source))
            for name, source in (("query", queries), ("key", tokens), ("value", tokens))
        )
        mixed = dot_product_attention(query, key, value)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out", **common)(mixed)
