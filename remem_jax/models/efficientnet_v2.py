"""EfficientNetV2, as timm and torchvision have it.

Source: Tan and Le 2021, https://arxiv.org/abs/2104.00298.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.models import layers, mobilenet_v2
from remem_jax.models.mobilenet_v2 import Options, Stage


class ConvBlock(nn.Module):
    """A 3x3 convolution.

    Attributes:
        stage: See `mobilenet_v2.Stage`; there is no expansion.
        stride: In pixels.
        drop_path: Share of the images for which the block is left out in training.
        options: See `mobilenet_v2.Options`.
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
        out = options.conv(self.stage.features, 3, self.stride, "conv")(maps)
        out = options.activation(options.norm("bn1")(out, train=train))
        return mobilenet_v2.residual(maps, out, self.stride, self.drop_path, train=train)


class FusedResidual(nn.Module):
    """A 3x3 convolution that widens, and a linear 1x1 one that narrows (Fused-MBConv).

    Attributes:
        stage: See `mobilenet_v2.Stage`.
        stride: Of the 3x3 convolution, in pixels.
        drop_path: Share of the images for which the block is left out in training.
        options: See `mobilenet_v2.Options`.
    """

    stage: Stage
    stride: int
    drop_path: float
    options: Options

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channel"], *, train: bool
    ) -> Float[Array, "batch rows columns feature"]:
        options, hidden = self.options, self.stage.expansion * maps.shape[-1]
        out = options.conv(hidden, 3, self.stride, "conv_exp")(maps)
        out = options.activation(options.norm("bn1")(out, train=train))
        out = options.conv(self.stage.features, 1, 1, "conv_pwl")(out)
        out = options.norm("bn2")(out, train=train)
        return mobilenet_v2.residual(maps, out, self.stride, self.drop_path, train=train)


class SqueezedResidual(mobilenet_v2.InvertedResidual):
    """The block of MobileNetV2, with a squeeze-and-excitation (MBConv)."""

    squeezed: bool = True


def make(
    *,
    variant: str,
    classes: int,
    padding: str = "same",
    stem: str = "imagenet",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    dtype: Any = jnp.float32,
) -> mobilenet_v2.MobileNet:
    """EfficientNetV2, equal to timm's `tf_efficientnetv2_*`, or to torchvision's.

    With 1,000 classes, at 224 pixels:

        variant   parameters    GMAC
        "b0"      7,139,704     0.72   timm's tf_efficientnetv2_b0
        "s"       21,458,488    2.85   tf_efficientnetv2_s, torchvision's efficientnet_v2_s
        "m"       54,139,356    5.36   tf_efficientnetv2_m, torchvision's efficientnet_v2_m

    BatchNorm has the momentum 0.9 in Flax's terms and the epsilon 1e-3. By default timm's networks
    have neither dropout nor drop_path; torchvision's have a dropout of 0.2 ("m": 0.3) and a
    drop_path of 0.2.

    Args:
        variant: One of `VARIANTS`.
        classes: Number of classes.
        padding: "same", TensorFlow's, as in the published weights and in timm's `tf_` networks;
            "torch" as in torchvision's. They differ where a convolution of stride 2 meets maps of
            even size.
        stem: See `mobilenet_v2.MobileNet`.
        dropout: See `mobilenet_v2.MobileNet`.
        drop_path: See `mobilenet_v2.MobileNet`.
        dtype: Type of the computation; parameters, BatchNorm and logits are float32.

    Raises:
        ValueError: If an option's value is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"Unknown EfficientNetV2 {variant!r}; known: {', '.join(VARIANTS)}.")
    layers.require_options(stem=stem, padding=padding, dtype=dtype)
    stem_features, stages = VARIANTS[variant]
    options = Options(nn.silu, padding, 1e-3, dtype)
    return mobilenet_v2.MobileNet(
        stages, stem_features, 1280, classes, options, stem, dropout, drop_path
    )


# Channels of the stem, and the stages. Table 4 of the paper is "s"; the others are the authors'.
VARIANTS = {
    "b0": (
        32,
        (
            Stage(ConvBlock, 1, 16, 1, 1),
            Stage(FusedResidual, 4, 32, 2, 2),
            Stage(FusedResidual, 4, 48, 2, 2),
            Stage(SqueezedResidual, 4, 96, 3, 2),
            Stage(SqueezedResidual, 6, 112, 5, 1),
            Stage(SqueezedResidual, 6, 192, 8, 2),
        ),
    ),
    "s": (
        24,
        (
            Stage(ConvBlock, 1, 24, 2, 1),
            Stage(FusedResidual, 4, 48, 4, 2),
            Stage(FusedResidual, 4, 64, 4, 2),
            Stage(SqueezedResidual, 4, 128, 6, 2),
            Stage(SqueezedResidual, 6, 160, 9, 1),
            Stage(SqueezedResidual, 6, 256, 15, 2),
        ),
    ),
    "m": (
        24,
        (
            Stage(ConvBlock, 1, 24, 3, 1),
            Stage(FusedResidual, 4, 48, 5, 2),
            Stage(FusedResidual, 4, 80, 5, 2),
            Stage(SqueezedResidual, 4, 160, 7, 2),
            Stage(SqueezedResidual, 6, 176, 14, 1),
            Stage(SqueezedResidual, 6, 304, 18, 2),
            Stage(SqueezedResidual, 6, 512, 5, 1),
        ),
    ),
}
