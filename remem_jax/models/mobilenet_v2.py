"""MobileNetV2, as timm and torchvision have it, and the blocks that EfficientNetV2 shares.

Source: Sandler et al. 2018, https://arxiv.org/abs/1801.04381.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from remem_jax.models import layers

Block = Callable[..., nn.Module]


class Stage(NamedTuple):
    """Blocks of one width.

    Attributes:
        block: Class of the blocks.
        expansion: Channels inside a block, per channel of its input; 1 in a
            `DepthwiseSeparable`.
        features: Channels of the output.
        repeats: Number of blocks.
        stride: Of the first block, in pixels.
    """

    block: Block
    expansion: int
    features: int
    repeats: int
    stride: int


class Options(NamedTuple):
    """What the blocks of one network share.

    Attributes:
        activation: Function behind all but the last normalisation of a block.
        padding: See `layers.pads`.
        epsilon: Added to the variance by BatchNorm.
        dtype: Type of the computation; parameters are float32.
    """

    activation: Callable[[Array], Array]
    padding: str
    epsilon: float
    dtype: Any

    def conv(self, features: int, kernel: int, stride: int, name: str) -> layers.Conv:
        """A convolution without bias."""
        return layers.Conv(features, kernel, stride, self.padding, dtype=self.dtype, name=name)

    def depthwise(self, stride: int) -> layers.DepthwiseConv:
        """A depthwise 3x3 convolution."""
        return layers.DepthwiseConv(3, stride, self.padding, self.dtype, name="conv_dw")

    def norm(self, name: str) -> layers.BatchNorm:
        """A normalisation; its momentum is 0.9, as in timm and torchvision."""
        return layers.BatchNorm(epsilon=self.epsilon, name=name)


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate that two dense layers compute from the means of all channels.

    Attributes:
        reduced: Channels between the two layers.
        options: See `Options`.

    Source: Hu et al. 2018, https://arxiv.org/abs/1709.01507.
    """

    reduced: int
    options: Options

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        def conv(features: int, name: str) -> layers.Conv:
            return layers.Conv(features, 1, has_bias=True, dtype=self.options.dtype, name=name)

        means = jnp.mean(maps, axis=(1, 2), keepdims=True)
        hidden = self.options.activation(conv(self.reduced, "conv_reduce")(means))
        gates = nn.sigmoid(conv(maps.shape[-1], "conv_expand")(hidden))
        return maps * jnp.broadcast_to(gates, maps.shape)


class DepthwiseSeparable(nn.Module):
    """A depthwise convolution and a linear 1x1 convolution.

    Attributes:
        stage: See `Stage`.
        stride: Of the depthwise convolution, in pixels.
        drop_path: Share of the images for which the block is left out in training.
        options: See `Options`.
    """

    stage: Stage
    stride: int
    drop_path: float
    options: Options

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        options = self.options
        out = options.depthwise(self.stride)(maps)
        out = options.activation(options.norm("bn1")(out, train=train))
        out = options.conv(self.stage.features, 1, 1, "conv_pw")(out)
        out = options.norm("bn2")(out, train=train)
        return residual(maps, out, self.stride, self.drop_path, train=train)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise one, and a linear 1x1 one that narrows.

    Attributes:
        stage: See `Stage`.
        stride: Of the depthwise convolution, in pixels.
        drop_path: Share of the images for which the block is left out in training.
        options: See `Options`.
        squeezed: Whether a `SqueezeExcite` gates the widened channels.
    """

    stage: Stage
    stride: int
    drop_path: float
    options: Options
    squeezed: bool = False

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        options, channels = self.options, maps.shape[-1]
        out = options.conv(self.stage.expansion * channels, 1, 1, "conv_pw")(maps)
        out = options.activation(options.norm("bn1")(out, train=train))
        out = options.depthwise(self.stride)(out)
        out = options.activation(options.norm("bn2")(out, train=train))
        if self.squeezed:
            out = SqueezeExcite(channels // 4, options, name="se")(out)
        out = options.conv(self.stage.features, 1, 1, "conv_pwl")(out)
        out = options.norm("bn3")(out, train=train)
        return residual(maps, out, self.stride, self.drop_path, train=train)


class MobileNet(nn.Module):
    """A convolution, stages of blocks, a 1x1 convolution and a linear classifier.

    Attributes:
        stages: The stages, from the image on.
        stem_features: Channels of the first convolution, a 3x3 one.
        head_features: Channels of the last one.
        classes: Number of classes.
        options: See `Options`.
        stem: "imagenet", whose first convolution has stride 2, or "small": stride 1 there and
            nothing else changed, so that all maps have twice the side; for images of 32 or 64
            pixels.
        dropout: Share of the features dropped before the classifier in training.
        drop_path: Share of the images for which a block is left out in training, were there one
            behind the last; falls linearly to 0 at the first. timm's `drop_path_rate`,
            torchvision's `stochastic_depth_prob`.
    """

    stages: Sequence[Stage]
    stem_features: int
    head_features: int
    classes: int
    options: Options
    stem: str = "imagenet"
    dropout: float = 0.0
    drop_path: float = 0.0

    @nn.compact
    def trunk(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch rows columns feature"]:
        """The last maps, of float images in [-1, 1]."""
        layers.require_float(images)
        options = self.options
        stride = 1 if self.stem == "small" else 2
        maps = options.conv(self.stem_features, 3, stride, "conv_stem")(images)
        maps = options.activation(options.norm("bn1")(maps, train=train))
        done, total = 0, sum(stage.repeats for stage in self.stages)
        for i, stage in enumerate(self.stages):
            for j in range(stage.repeats):
                stride, rate = stage.stride if j == 0 else 1, self.drop_path * done / total
                block = stage.block(stage, stride, rate, options, name=f"blocks_{i}_{j}")
                maps, done = block(maps, train=train), done + 1
        maps = options.conv(self.head_features, 1, 1, "conv_head")(maps)
        return options.activation(options.norm("bn2")(maps, train=train))

    @nn.compact
    def head(
        self, maps: Float[Array, "batch rows columns feature"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of the last maps."""
        features = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        init = layers.uniform_of_fan(self.classes)
        return nn.Dense(self.classes, kernel_init=init, name="classifier")(features)

    def __call__(
        self, images: Shaped[Array, "batch height width channel"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of float images in [-1, 1]."""
        return self.head(self.trunk(images, train=train), train=train)


def residual(
    maps: Float[Array, "batch height width channel"],
    out: Float[Array, "batch rows columns feature"],
    stride: int,
    drop_path: float,
    *,
    train: bool,
) -> Float[Array, "batch rows columns feature"]:
    """The output of a block, plus its input where nothing was narrowed or widened."""
    if stride > 1 or out.shape[-1] != maps.shape[-1]:
        return out
    drop = nn.Dropout(drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
    return drop(out) + maps


def relu6(maps: Float[Array, "..."]) -> Float[Array, "..."]:
    """ReLU of at most 6; its gradient at 0 is 0, as torch's (that of Flax's is 1/2)."""
    return jnp.minimum(nn.relu(maps), 6.0)


def rounded(channels: float) -> int:
    """The multiple of 8 next to a number of channels, but not less than 90% of it."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


def make(
    *,
    classes: int,
    width: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    dtype: Any = jnp.float32,
) -> MobileNet:
    """MobileNetV2, equal to timm's, and at width 1 to torchvision's.

    With 1,000 classes, at 224 pixels:

        width   parameters   GMAC
        0.35    1,677,128    0.06   timm's mobilenetv2_035
        0.5     1,968,680    0.10   mobilenetv2_050
        0.75    2,636,424    0.21   mobilenetv2_075
        1.0     3,504,872    0.30   mobilenetv2_100
        1.4     6,108,776    0.58   mobilenetv2_140

    Args:
        classes: Number of classes.
        width: Multiplies the channels of all layers; those of the last only above 1.
        stem: See `MobileNet`.
        dropout: See `MobileNet`.
        drop_path: See `MobileNet`.
        dtype: Type of the computation; parameters, BatchNorm and logits are float32.

    Raises:
        ValueError: If the stem or the type is unknown.
    """
    layers.require_options(stem=stem, dtype=dtype)
    stages = tuple(
        Stage(
            InvertedResidual if expansion > 1 else DepthwiseSeparable,
            expansion,
            rounded(features * width),
            repeats,
            stride,
        )
        for expansion, features, repeats, stride in _STAGES
    )
    options = Options(relu6, "torch", 1e-5, dtype)
    head_features = max(1280, rounded(1280 * width))
    return MobileNet(
        stages, rounded(32 * width), head_features, classes, options, stem, dropout, drop_path
    )


# Table 2 of the paper: expansion, channels, repeats, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
