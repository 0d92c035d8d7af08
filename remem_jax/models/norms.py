"""The norms of ViTs."""

from typing import Any, NamedTuple

import flax.linen as nn

KINDS = ("layer", "rms")


class Norm(NamedTuple):
    """What the norms of one network share.

    Attributes:
        kind: "layer", or "rms" for a norm without mean and bias.
        epsilon: Added to the variance, or to the mean square.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450; Zhang and Sennrich 2019,
    https://arxiv.org/abs/1910.07467 (RMSNorm).
    """

    kind: str = "layer"
    epsilon: float = 1e-6

    def __call__(self, name: str, dtype: Any = None) -> nn.Module:
        """Makes a norm over the last axis, computed in float32; parameters are float32."""
        layer = nn.LayerNorm if self.kind == "layer" else nn.RMSNorm
        return layer(epsilon=self.epsilon, dtype=dtype, name=name)
