"""Vision Transformer with re-weighted blocks, under the parameter names of the AugReg files.

Source: Steiner et al. 2021, https://arxiv.org/abs/2106.10270; the re-weighting is Eq. 2 of ReMem,
Dong et al. 2025, https://arxiv.org/abs/2506.23041.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

RESIDUALS = ("two_minus", "plain")


class Size(NamedTuple):
    """Sizes of a ViT; `patch` is in pixels, the rest are counts."""

    patch: int
    features: int
    depth: int
    heads: int

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of the MLP: four times the features, in every ViT here."""
        return 4 * self.features


# Pico is ours: the bundled teacher of configs/quickstart.py.
VARIANTS = {
    "Pico/8": Size(patch=8, features=160, depth=6, heads=5),
    "Ti/16": Size(patch=16, features=192, depth=12, heads=3),
    "S/32": Size(patch=32, features=384, depth=12, heads=6),
    "S/16": Size(patch=16, features=384, depth=12, heads=6),
    "B/32": Size(patch=32, features=768, depth=12, heads=12),
    "B/16": Size(patch=16, features=768, depth=12, heads=12),
    "B/8": Size(patch=8, features=768, depth=12, heads=12),
    "L/32": Size(patch=32, features=1024, depth=24, heads=16),
    "L/16": Size(patch=16, features=1024, depth=24, heads=16),
    "H/14": Size(patch=14, features=1280, depth=32, heads=16),
}


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them.

    Attributes:
        hidden: Width of the hidden layer.
        exact_gelu: True for the GELU by erf, as timm has it; AugReg was trained with tanh.
        dropout: Share of the units dropped after each layer in training.
    """

    hidden: int
    exact_gelu: bool
    dropout: float

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        hidden = nn.gelu(
            nn.Dense(self.hidden, name="Dense_0")(tokens), approximate=not self.exact_gelu
        )
        return drop(nn.Dense(tokens.shape[-1], name="Dense_1")(drop(hidden)))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each weighed against its residual (ReMem, Eq. 2).

    Attributes:
        heads: Number of attention heads; divides the features.
        hidden: Width of the MLP's hidden layer.
        mlp_weight: Weight of the MLP's output (alpha).
        attention_weight: Weight of the attention's output (beta).
        residual: "two_minus" weighs the residual by 2 - alpha (or beta), "plain" by 1.
        exact_gelu: See `MlpBlock`.
        dropout: Share of the units dropped in training.
    """

    heads: int
    hidden: int
    mlp_weight: float
    attention_weight: float
    residual: str
    exact_gelu: bool
    dropout: float

    def add(
        self,
        weight: float,
        update: Float[Array, "batch token feature"],
        tokens: Float[Array, "batch token feature"],
    ) -> Float[Array, "batch token feature"]:
        """Weighed sum of a sub-block's output and its residual; exact at weight 1."""
        return weight * update + ((2 - weight) if self.residual == "two_minus" else 1.0) * tokens

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        # The numbers in the names count all submodules, as Flax did before Linen.
        normed = nn.LayerNorm(name="LayerNorm_0")(tokens)
        update = nn.MultiHeadDotProductAttention(self.heads, name="MultiHeadDotProductAttention_1")(
            normed
        )
        update = nn.Dropout(self.dropout, deterministic=not train)(update)
        tokens = self.add(self.attention_weight, update, tokens)
        normed = nn.LayerNorm(name="LayerNorm_2")(tokens)
        mlp = MlpBlock(self.hidden, self.exact_gelu, self.dropout, name="MlpBlock_3")
        return self.add(self.mlp_weight, mlp(normed, train=train), tokens)


class PositionEmbedding(nn.Module):
    """Adds one learned vector per token; the first is [CLS]'s."""

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch token feature"]:
        shape = (1, *tokens.shape[1:])
        return tokens + self.param("pos_embedding", nn.initializers.normal(0.02), shape)


class Encoder(nn.Module):
    """Position embedding, blocks, last norm.

    The blocks are applied by `lax.scan` over their stacked parameters: it compiles several times
    faster than a Python loop and, on a CPU, trains about twice as fast. The parameters
    themselves stay one tree per block, as the files have them.

    Attributes:
        depth: Number of blocks.
        block: Everything `EncoderBlock` takes.
        dropout: Share of the units dropped after the position embedding in training.
        rematerialise: Recompute each block in the backward pass instead of storing it.
    """

    depth: int
    block: dict[str, Any]
    dropout: float
    rematerialise: bool

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        tokens = PositionEmbedding(name="posembed_input")(tokens)
        tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
        names = [f"encoderblock_{i}" for i in range(self.depth)]
        if self.is_initializing():
            for name in names:
                tokens = EncoderBlock(**self.block, name=name)(tokens, train=train)
        else:
            tokens = self._scan(names, tokens, train=train)
        return nn.LayerNorm(name="encoder_norm")(tokens)

    def _scan(
        self, names: list[str], tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        params = self.variables["params"]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[n] for n in names))
        drops = train and self.dropout > 0
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if drops else None
        block = EncoderBlock(**self.block, parent=None)

        def apply(carry: Array, layer: Any) -> tuple[Any, None]:
            layer_params, key = layer
            rngs = {} if key is None else {"dropout": key}
            return block.apply({"params": layer_params}, carry, train=train, rngs=rngs), None

        apply = jax.checkpoint(apply, prevent_cse=False) if self.rematerialise else apply
        return jax.lax.scan(apply, tokens, (stacked, keys))[0]


class VisionTransformer(nn.Module):
    """ViT that classifies by [CLS]; at weights of 1, bit for bit the network of the file.

    Attributes:
        size: Patch, features, depth, heads.
        classes: Number of classes.
        mlp_weight: alpha of ReMem's Eq. 2, inside (0, 2); 1 is the plain ViT.
        attention_weight: beta of the same equation.
        residual: Weight of the residual: "two_minus" (2 - alpha, the default reading of the
            paper: the pull of block l falls off exponentially) or "plain" (1).
        exact_gelu: True for the GELU by erf, as timm has it; AugReg was trained with tanh.
        dropout: Share of the units dropped in training, at the places vit_jax drops them.
        rematerialise: Recompute blocks in the backward pass: less memory; faster on a CPU.
    """

    size: Size
    classes: int
    mlp_weight: float = 1.0
    attention_weight: float = 1.0
    residual: str = "two_minus"
    exact_gelu: bool = False
    dropout: float = 0.0
    rematerialise: bool = False

    def setup(self) -> None:
        """Names the parts as the files do."""
        patch = (self.size.patch, self.size.patch)
        block = {
            "heads": self.size.heads,
            "hidden": self.size.hidden,
            "mlp_weight": self.mlp_weight,
            "attention_weight": self.attention_weight,
            "residual": self.residual,
            "exact_gelu": self.exact_gelu,
            "dropout": self.dropout,
        }
        self.embedding = nn.Conv(
            self.size.features, patch, strides=patch, padding="VALID", name="embedding"
        )
        self.cls = self.param("cls", nn.initializers.zeros, (1, 1, self.size.features))
        self.transformer = Encoder(
            self.size.depth, block, self.dropout, self.rematerialise, name="Transformer"
        )
        self.head = nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")

    def pre_logits(
        self,
        images: Shaped[Array | np.ndarray, "batch height width channel"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch feature"]:
        """The [CLS] token after the last norm, which the head sees."""
        _require_model_range(images, self.size.patch)
        patches = self.embedding(images)
        batch, features = patches.shape[0], patches.shape[-1]
        tokens = patches.reshape(batch, -1, features)
        tokens = jnp.concatenate([jnp.broadcast_to(self.cls, (batch, 1, features)), tokens], axis=1)
        return self.transformer(tokens, train=train)[:, 0]

    def __call__(
        self,
        images: Shaped[Array | np.ndarray, "batch height width channel"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch klass"]:
        """Logits of float images in [-1, 1]."""
        return self.head(self.pre_logits(images, train=train))


def _require_model_range(images: Array | np.ndarray, patch: int) -> None:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"The model takes float images in [-1, 1], got {images.dtype}; "
            "make them with augment.to_model_range."
        )
    if images.shape[1] % patch or images.shape[2] % patch:
        raise ValueError(
            f"Images of {images.shape[1]} x {images.shape[2]} pixels do not divide into patches "
            f"of {patch}; set config.data.image_size to a multiple of {patch}."
        )


def make(*, variant: str, classes: int, **options: Any) -> VisionTransformer:
    """A ViT by the name of its size, such as "Ti/16"; options are `VisionTransformer`'s."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown ViT variant {variant!r}; known: {', '.join(VARIANTS)}.")
    if options.get("residual", "two_minus") not in RESIDUALS:
        raise ValueError(f"residual must be one of {RESIDUALS}, got {options['residual']!r}.")
    return VisionTransformer(VARIANTS[variant], classes, **options)
