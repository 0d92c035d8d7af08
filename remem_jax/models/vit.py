"""Vision Transformer with re-weighted blocks, under the parameter names of the AugReg files.

Source: Steiner et al. 2021, https://arxiv.org/abs/2106.10270; the re-weighting is Eq. 2 of ReMem,
Dong et al. 2025, https://arxiv.org/abs/2506.23041.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from remem_jax.models import encoder, hybrid, layers, map_head, mlp, norms, rotary
from remem_jax.models.normalisation import IDENTITY, Normalisation
from remem_jax.models.rematerialisation import RECOMPUTED

RESIDUALS = ("two_minus", "plain")
POOLS = ("cls", "gap", "cls_gap", "map")
POSITIONS = ("learned", "sincos2d", "none")
QKV_BIASES = ("qkv", "qv", "")
# The fields of a `VisionTransformer` that determine the function of its parameters.
ARCHITECTURE = (
    *("pool", "positions", "representation", "gelu", "normalisation"),
    *("class_token", "registers", "prefix_positions", "patch_bias", "patch_norm"),
    *("norm", "epsilon", "norm_pre", "norm_last", "fc_norm", "layer_scale"),
    *("qkv_bias", "has_bias", "qk_norm", "attention_norm", "mlp_norm", "gated", "rope"),
    *("pool_heads", "pool_hidden"),
)
DTYPES = ("float32", "bfloat16")
INITIALISATIONS = ("flax", "timm")
# The fields that are also those of `encoder.Block`.
_OF_BLOCKS = (
    *("mlp_weight", "attention_weight", "residual", "gelu", "dropout", "drop_path"),
    *("layer_scale", "qkv_bias", "has_bias", "qk_norm", "attention_norm", "mlp_norm", "gated"),
    *("rope", "prefix"),
)


# timm's initialisers: of dense layers, and torch's default of convolutions.
_NORMAL = nn.initializers.normal(0.02)
_CONVOLUTION = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Size(NamedTuple):
    """Sizes of a ViT.

    Attributes:
        patch: Side of a patch, in pixels of the image or of the stem's maps.
        features: Width of a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        mlp: Width of the MLP's hidden layer; 0 for four times the features.
        stem: Number of units of each stage of a hybrid's ResNet stem, () for its root only; None
            if patches are cut from the image.
    """

    patch: int
    features: int
    depth: int
    heads: int
    mlp: int = 0
    stem: tuple[int, ...] | None = None

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of the MLP."""
        return self.mlp or 4 * self.features

    @property
    def pixels(self) -> int:
        """Side of a token's patch, in pixels of the image."""
        if self.stem is None:
            return self.patch
        return self.patch * 4 * 2 ** max(len(self.stem) - 1, 0)


# So400m, g and G are big_vision's.
VARIANTS = {
    "Ti/16": Size(patch=16, features=192, depth=12, heads=3),
    "S/32": Size(patch=32, features=384, depth=12, heads=6),
    "S/16": Size(patch=16, features=384, depth=12, heads=6),
    "B/32": Size(patch=32, features=768, depth=12, heads=12),
    "B/16": Size(patch=16, features=768, depth=12, heads=12),
    "B/8": Size(patch=8, features=768, depth=12, heads=12),
    "L/32": Size(patch=32, features=1024, depth=24, heads=16),
    "L/16": Size(patch=16, features=1024, depth=24, heads=16),
    "So400m/14": Size(patch=14, features=1152, depth=27, heads=16, mlp=4304),
    "H/14": Size(patch=14, features=1280, depth=32, heads=16),
    "g/14": Size(patch=14, features=1408, depth=40, heads=16, mlp=6144),
    "G/14": Size(patch=14, features=1664, depth=48, heads=16, mlp=8192),
    "R+Ti/16": Size(patch=8, features=192, depth=12, heads=3, stem=()),
    "R26+S/32": Size(patch=1, features=384, depth=12, heads=6, stem=(2, 2, 2, 2)),
    "R50+B/16": Size(patch=1, features=768, depth=12, heads=12, stem=(3, 4, 9)),
    "R50+L/32": Size(patch=1, features=1024, depth=24, heads=16, stem=(3, 4, 6, 3)),
}


class VisionTransformer(nn.Module):
    """A ViT classifier. With both weights 1 it is the plain ViT, as in the checkpoint.

    Attributes:
        size: See `Size`.
        classes: Number of classes.
        mlp_weight: Weight of the MLPs (alpha of ReMem's Eq. 2), in (0, 2).
        attention_weight: Weight of the attentions (beta of the same equation), in (0, 2).
        residual: Weight of the residual: "two_minus" (2 - alpha, our reading of the paper, in
            which the influence of a block decays exponentially) or "plain" (1).
        pool: Input of the head: the [CLS] token ("cls"), the mean of the patch tokens ("gap"),
            both concatenated ("cls_gap"), or all tokens pooled by attention ("map").
        positions: "learned", "sincos2d" for big_vision's computed ones, or "none" besides
            `rope`.
        representation: Width of a dense layer with tanh before the head; 0 for none.
        gelu: "tanh", as in vit_jax and big_vision, "erf", as in timm, or "quick", as in OpenAI's
            CLIP.
        dropout: Share of the units dropped in training, at the same places as in vit_jax.
        pruned_mlp: Number of MLPs removed, from the last block down (ReMem, Section 4).
        pruned_attention: Number of attention sub-blocks removed, from the last block down.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters and logits are float32.
        rematerialise: Activations that the backward pass recomputes, to store less: "nothing",
            "elementwise" operations, norms and scores, or whole "blocks".
        scan: Whether the blocks run by `lax.scan` or unrolled; parameters and outputs are equal.
        drop_path: Stochastic depth: share of the images for which a sub-block is left out in
            training. The rate rises linearly from 0 in the first block to this value in the last,
            as timm's `drop_path_rate`.
        normalisation: Normalisation of the images.
        initialisation: Distributions of the initial parameters: "flax" for LeCun's, with a head of
            zeros, or "timm".
        class_token: Whether there is a [CLS] token; None if only `pool` needs one.
        registers: Number of register tokens, which follow [CLS] (Darcet et al. 2023,
            https://arxiv.org/abs/2309.16588).
        prefix_positions: Whether [CLS] and registers have learned positions.
        patch_bias: Whether the patch embedding has a bias.
        patch_norm: Whether the embedded patches are normalised, before positions are added.
        norm: Kind of the norms, "layer" or "rms".
        epsilon: Epsilon of the norms.
        norm_pre: Whether there is a norm before the blocks, as in CLIP.
        norm_last: Whether there is a norm after the blocks.
        fc_norm: Whether the pooled tokens are normalised.
        layer_scale: See `encoder.Block`.
        qkv_bias: See `encoder.Block`.
        has_bias: See `encoder.Block`.
        qk_norm: See `encoder.Block`.
        attention_norm: See `encoder.Block`.
        mlp_norm: See `encoder.Block`.
        gated: See `encoder.Block`.
        rope: Rotary positions of the patches; None for none.
        pool_heads: Number of heads of the pool "map"; 0 for that of the blocks.
        pool_hidden: Width of the hidden layer of the pool "map"; 0 for that of the blocks.
    """

    size: Size
    classes: int
    mlp_weight: float = 1.0
    attention_weight: float = 1.0
    residual: str = "two_minus"
    pool: str = "cls"
    positions: str = "learned"
    representation: int = 0
    gelu: str = "tanh"
    dropout: float = 0.0
    pruned_mlp: int = 0
    pruned_attention: int = 0
    dtype: str = "float32"
    rematerialise: str = "nothing"
    scan: bool = True
    drop_path: float = 0.0
    normalisation: Normalisation = IDENTITY
    initialisation: str = "flax"
    class_token: bool | None = None
    registers: int = 0
    prefix_positions: bool = True
    patch_bias: bool = True
    patch_norm: bool = False
    norm: str = "layer"
    epsilon: float = 1e-6
    norm_pre: bool = False
    norm_last: bool = True
    fc_norm: bool = False
    layer_scale: bool = False
    qkv_bias: str = "qkv"
    has_bias: bool = True
    qk_norm: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    gated: bool = False
    rope: rotary.Rotary | None = None
    pool_heads: int = 0
    pool_hidden: int = 0

    @property
    def has_cls(self) -> bool:
        """Whether there is a [CLS] token, which is the first."""
        return self.pool in ("cls", "cls_gap") if self.class_token is None else self.class_token

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches: [CLS] and registers."""
        return self.has_cls + self.registers

    @nn.compact
    def trunk(
        self,
        images: Shaped[Array | np.ndarray, "batch height width channel"],
        *,
        train: bool = False,
        taps: Sequence[int] = (),
    ) -> Float[Array, "batch token feature"]:
        """Returns the tokens after the last norm: `prefix` tokens, then those of the patches.

        The outputs of the blocks in `taps` are sown; see `encoder.Encoder`.
        """
        images, block = jnp.asarray(images), self._block()
        _require_model_range(images, self.size.pixels)
        tokens = self._tokens(self.normalisation(images).astype(block.dtype))
        return encoder.Encoder(
            self.size.depth,
            block,
            self.positions == "learned",
            self.pruned_mlp,
            self.pruned_attention,
            self.rematerialise,
            self.scan,
            0 if self.prefix_positions else self.prefix,
            self.norm_pre,
            self.norm_last,
            name="Transformer",
        )(tokens, train=train, taps=taps)

    @nn.compact
    def head(
        self, tokens: Float[Array, "batch token feature"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the tokens after the last norm."""
        del train
        init = _NORMAL if self.initialisation == "timm" else nn.initializers.zeros
        return nn.Dense(self.classes, kernel_init=init, name="head")(self._pooled(tokens))

    def __call__(
        self,
        images: Shaped[Array | np.ndarray, "batch height width channel"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of float images in [-1, 1]."""
        return self.head(self.trunk(images, train=train), train=train)

    @nn.compact
    def pre_logits(
        self,
        images: Shaped[Array | np.ndarray, "batch height width channel"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch feature"]:
        """Returns the head's input in float32: the pooled tokens after the last norm."""
        return self._pooled(self.trunk(images, train=train))

    @nn.compact
    def pooled(self, tokens: Float[Array, "batch token feature"]) -> Float[Array, "batch feature"]:
        """Returns one vector for each image, in float32, of the width of the tokens.

        Args:
            tokens: The tokens after the last norm.

        Returns:
            What the head pools, before `fc_norm` and a `representation`; [CLS] if that is [CLS] and
            the mean of the patches.
        """
        pool = "cls" if self.pool == "cls_gap" else self.pool
        return self._pooled_by(pool, tokens).astype(jnp.float32)

    def _pooled_by(
        self, pool: str, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch feature"]:
        block = self._block()
        if pool == "map":
            heads, hidden = self.pool_heads or block.heads, self.pool_hidden or block.hidden
            return map_head.MapHead(block, heads, hidden, name="MAPHead_0")(tokens)
        return tokens[:, 0] if pool == "cls" else jnp.mean(tokens[:, self.prefix :], axis=1)

    def _pooled(self, tokens: Float[Array, "batch token feature"]) -> Float[Array, "batch pooled"]:
        block = self._block()
        if self.pool == "cls_gap":
            both = [self._pooled_by(pool, tokens) for pool in ("cls", "gap")]
            pooled = jnp.concatenate(both, axis=-1)
        else:
            pooled = self._pooled_by(self.pool, tokens)
        pooled = pooled.astype(jnp.float32)
        if self.fc_norm:
            pooled = block.norm("fc_norm")(pooled)
        if self.representation:
            pooled = jnp.tanh(nn.Dense(self.representation, name="pre_logits")(pooled))
        return pooled

    def _block(self) -> encoder.Block:
        """Returns the options that the blocks share."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in _OF_BLOCKS}
        return encoder.Block(
            heads=self.size.heads,
            hidden=self.size.hidden,
            dtype=jnp.dtype(self.dtype),
            kernel_init=_NORMAL if self.initialisation == "timm" else encoder.LECUN,
            norm=norms.Norm(self.norm, self.epsilon),
            **shared,
        )

    def _tokens(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch token feature"]:
        """Returns [CLS], registers and embedded patches, as far as there are any."""
        maps, patch, features = images, (self.size.patch,) * 2, self.size.features
        if self.size.stem is not None:
            maps = hybrid.stem(maps, self.size.stem, images.dtype, self.rematerialise)
        is_timms, fan = self.initialisation == "timm", self.size.patch**2 * maps.shape[-1]
        embedding = nn.Conv(
            features,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=self.patch_bias,
            dtype=images.dtype,
            kernel_init=_CONVOLUTION if is_timms else encoder.LECUN,
            bias_init=layers.uniform_of_fan(fan) if is_timms else nn.initializers.zeros,
            name="embedding",
        )
        grid = embedding(maps)
        tokens = grid.reshape(grid.shape[0], -1, features)
        if self.patch_norm:
            tokens = self._block().norm("embedding_norm", images.dtype)(tokens)
        if self.positions == "sincos2d":
            tokens = tokens + jnp.asarray(sincos2d(grid.shape[1], features), tokens.dtype)
        init = nn.initializers.normal(1e-6) if is_timms else nn.initializers.zeros
        first = []
        for name, count in (("cls", int(self.has_cls)), ("registers", self.registers)):
            if count:
                learned = self.param(name, init, (1, count, features)).astype(tokens.dtype)
                first.append(jnp.broadcast_to(learned, (tokens.shape[0], count, features)))
        return jnp.concatenate([*first, tokens], axis=1) if first else tokens


def sincos2d(side: int, features: int) -> np.ndarray:
    """Returns position embeddings of a square grid: sines and cosines of both axes.

    Returns:
        An array (1, side * side, features): sin(x), cos(x), sin(y), cos(y), a
        quarter of the features each.

    Source: Chen et al. 2021, https://arxiv.org/abs/2104.02057, in big_vision's form.
    """
    rates = 10_000.0 ** -(np.arange(features // 4) / (features // 4 - 1))
    y, x = (axis.reshape(-1, 1) * rates for axis in np.mgrid[:side, :side])
    waves = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return waves.astype(np.float32)[None]


def _require_model_range(images: Array, pixels: int) -> None:
    layers.require_float(images)
    height, width = images.shape[1:3]
    if height != width:
        raise ValueError(f"The model takes square images, got {height} x {width} pixels.")
    if height % pixels:
        raise ValueError(
            f"Images of {height} x {width} pixels do not divide into patches "
            f"of {pixels}; set config.data.image_size to a multiple of {pixels}."
        )


def make(*, variant: str | Size, classes: int, **options: Any) -> VisionTransformer:
    """Builds a ViT.

    Args:
        variant: One of `VARIANTS`, such as "Ti/16", or a `Size`.
        classes: Number of classes.
        **options: Fields of `VisionTransformer`.

    Raises:
        ValueError: If the variant or an option's value is unknown or out of range.
    """
    if isinstance(variant, str) and variant not in VARIANTS:
        raise ValueError(f"Unknown ViT variant {variant!r}; known: {', '.join(VARIANTS)}.")
    size = variant if isinstance(variant, Size) else VARIANTS[variant]
    model = VisionTransformer(size, classes, **options)
    known = {
        "residual": RESIDUALS,
        "pool": POOLS,
        "positions": POSITIONS,
        "dtype": DTYPES,
        "rematerialise": RECOMPUTED,
        "initialisation": INITIALISATIONS,
        "gelu": tuple(mlp.GELUS),
        "norm": norms.KINDS,
        "qkv_bias": QKV_BIASES,
    }
    for name, values in known.items():
        if getattr(model, name) not in values:
            raise ValueError(f"{name} must be one of {values}, got {getattr(model, name)!r}.")
    for name in ("pruned_mlp", "pruned_attention"):
        if not 0 <= getattr(model, name) <= size.depth:
            raise ValueError(
                f"{name} must be from 0 to the depth {size.depth}, got {getattr(model, name)}."
            )
    if not model.has_cls and model.pool in ("cls", "cls_gap"):
        raise ValueError(f"The pool {model.pool!r} needs a [CLS] token; set class_token.")
    if size.features % size.heads:
        raise ValueError(f"{size.features} features do not divide into {size.heads} heads.")
    return model
