"""Squeeze-and-excitation (Hu et al. 2018, https://arxiv.org/abs/1709.01507)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.models import layers


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate that two dense layers compute from the means of all channels.

    Attributes:
        reduced: Channels between the two layers.
        names: Names of the two layers, which are convolutions of 1 x 1.
        activation: Function between the two layers.
        gate: Function of the second layer's output.
        dtype: Type of the computation.
    """

    reduced: int
    names: tuple[str, str] = ("conv_reduce", "conv_expand")
    activation: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        reduce, expand = (
            layers.Conv(channels, 1, has_bias=True, dtype=self.dtype, name=name)
            for channels, name in zip((self.reduced, maps.shape[-1]), self.names, strict=True)
        )
        hidden = self.activation(reduce(jnp.mean(maps, axis=(1, 2), keepdims=True)))
        return maps * jnp.broadcast_to(self.gate(expand(hidden)), maps.shape)
