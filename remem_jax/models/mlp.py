"""The MLP of a ViT's blocks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from remem_jax.models.norms import Norm
from remem_jax.models.rematerialisation import kept

# By tanh as in vit_jax and big_vision, by erf as in timm, or by a sigmoid as in OpenAI's CLIP.
GELUS: Mapping[str, Callable[..., jax.Array]] = {
    "tanh": functools.partial(nn.gelu, approximate=True),
    "erf": functools.partial(nn.gelu, approximate=False),
    "quick": lambda x: x * nn.sigmoid(1.702 * x),
}


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them, or a SwiGLU.

    Attributes:
        hidden: Width of the hidden layer.
        gelu: One of `GELUS`.
        dropout: Share of the units dropped after each layer in training.
        dtype: Type of the computation.
        kernel_init: Initialiser of the kernels.
        has_bias: Whether the layers have biases.
        gated: Whether it is a SwiGLU (`encoder.Block`).
        norm: Norm of the hidden layer; None for none.
    """

    hidden: int
    gelu: str
    dropout: float
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    has_bias: bool = True
    gated: bool = False
    norm: Norm | None = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init, use_bias=self.has_bias
        )
        hidden = kept("hidden", dense(self.hidden, name="Dense_0")(tokens))
        if self.gated:
            hidden = nn.silu(kept("hidden", dense(self.hidden, name="gate")(tokens))) * hidden
        else:
            hidden = GELUS[self.gelu](hidden)
        hidden = drop(hidden)
        if self.norm:
            hidden = self.norm("norm", self.dtype)(hidden)
        return drop(dense(tokens.shape[-1], name="Dense_1")(hidden))
