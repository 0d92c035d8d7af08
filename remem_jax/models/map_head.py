"""Attention pooling, the head of big_vision's ViTs without a [CLS] token."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.models.attention import Attention
from remem_jax.models.encoder import Block
from remem_jax.models.mlp import MlpBlock


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned query attends to all tokens.

    Source: Zhai et al. 2022, https://arxiv.org/abs/2106.04560. Names are big_vision's.

    Attributes:
        shared: GELU, norms and type. Its weights are not used.
        heads: Number of heads.
        hidden: Width of the MLP's hidden layer.
    """

    shared: Block
    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch feature"]:
        shared, init = self.shared, nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, 1, tokens.shape[-1]))
        queries = jnp.broadcast_to(
            probe.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1])
        )
        attention = Attention(self.heads, shared.dtype, init, name="MultiHeadDotProductAttention_0")
        pooled = attention(queries, tokens)
        normed = shared.norm("LayerNorm_0", shared.dtype)(pooled)
        mlp = MlpBlock(self.hidden, shared.gelu, 0.0, shared.dtype, name="MlpBlock_0")
        return (pooled + mlp(normed, train=False))[:, 0]
