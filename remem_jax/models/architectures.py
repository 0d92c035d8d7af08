"""Inverted-residual networks as tables: the types, and the EfficientNets.

`inverted_residual` builds a network from its `Architecture`. `mobilenets` has the MobileNets. To
add a member of the family, add a table to one of the two files.
"""

import math
from typing import NamedTuple


class Row(NamedTuple):
    """Blocks of one kind that follow each other; one row of a paper's table.

    Attributes:
        block: Name of the block: "conv", "separable", "inverted", "fused" or "universal"; see
            `inverted_blocks`.
        channels: Channels of the output.
        repeats: Number of blocks.
        stride: Stride of the first block, in pixels; that of the others is 1.
        kernel: Side of the kernel that is not 1x1, in pixels; 0 for none, in a "universal" block.
        expansion: Channels inside a block, per channel of its input.
        squeeze: Channels between the two layers of squeeze-and-excitation, per channel; 0 for no
            squeeze-and-excitation.
        activation: One of `layers.ACTIVATIONS`; "" for that of the network.
        start_kernel: Side of the depthwise kernel before the expansion, in a "universal" block; 0
            for none.
        has_residual: Whether the input is added to the output where the shapes are equal.
    """

    block: str
    channels: int
    repeats: int = 1
    stride: int = 1
    kernel: int = 3
    expansion: float = 1
    squeeze: float = 0.0
    activation: str = ""
    start_kernel: int = 0
    has_residual: bool = True


class Squeeze(NamedTuple):
    """How the squeeze-and-excitation of a network works.

    Attributes:
        gate: "sigmoid" or "hard_sigmoid".
        activation: One of `layers.ACTIVATIONS`, between the two layers; "" for that of the block.
        of_expanded: Whether `Row.squeeze` is relative to the expanded channels, rounded to a
            multiple of 8, rather than to those of the block's input.
    """

    gate: str = "sigmoid"
    activation: str = ""
    of_expanded: bool = False


class Head(NamedTuple):
    """The last 1x1 convolution of a network.

    Attributes:
        channels: Channels of its output, which the classifier takes.
        after_pooling: Whether it is applied to the mean over all pixels, as in MobileNetV3 and
            MobileNetV4, rather than to the maps.
        has_norm: Whether BatchNorm follows; without it, the convolution has a bias.
    """

    channels: int = 1280
    after_pooling: bool = False
    has_norm: bool = True


class Architecture(NamedTuple):
    """The table of an inverted-residual network, without its number of classes.

    Attributes:
        stem: Channels of the first convolution, a 3x3 one of stride 2.
        stages: Rows of each stage, from the image on.
        activation: One of `layers.ACTIVATIONS`.
        padding: One of `layers.PADDINGS`.
        epsilon: Added to the variance by BatchNorm.
        momentum: Share of the running statistics that BatchNorm keeps in a step; torch's momentum
            is 1 minus this.
        head: The last convolution.
        squeeze: How squeeze-and-excitation works.
    """

    stem: int
    stages: tuple[tuple[Row, ...], ...]
    activation: str
    padding: str = "torch"
    epsilon: float = 1e-5
    momentum: float = 0.9
    head: Head = Head()
    squeeze: Squeeze = Squeeze()


def rounded(channels: float) -> int:
    """Returns the multiple of 8 nearest to a number of channels, but at least 90 % of it."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def scaled(architecture: Architecture, *, width: float = 1.0, depth: float = 1.0) -> Architecture:
    """Scales the channels and the repeats of all stages; the stem and the head stay as they are.

    Args:
        architecture: The network at width 1 and depth 1. Each stage has one row.
        width: Multiplies the channels, which are `rounded`.
        depth: Multiplies the repeats, rounded up, except in the first and the last stage.
    """
    last = len(architecture.stages) - 1
    stages = []
    for number, (row,) in enumerate(architecture.stages):
        repeats = row.repeats if number in (0, last) else math.ceil(row.repeats * depth)
        stages.append((row._replace(channels=rounded(row.channels * width), repeats=repeats),))
    return architecture._replace(stages=tuple(stages))


# EfficientNet-B0 without squeeze-and-excitation, and with ReLU6.
# Source: github.com/tensorflow/tpu, models/official/efficientnet/lite.
EFFICIENTNET_LITE0 = Architecture(
    stem=32,
    stages=(
        (Row("separable", 16),),
        (Row("inverted", 24, 2, stride=2, expansion=6),),
        (Row("inverted", 40, 2, stride=2, kernel=5, expansion=6),),
        (Row("inverted", 80, 3, stride=2, expansion=6),),
        (Row("inverted", 112, 3, kernel=5, expansion=6),),
        (Row("inverted", 192, 4, stride=2, kernel=5, expansion=6),),
        (Row("inverted", 320, 1, expansion=6),),
    ),
    activation="relu6",
    padding="same",
    epsilon=1e-3,
)
EFFICIENTNET_LITE1 = scaled(EFFICIENTNET_LITE0, depth=1.1)
EFFICIENTNET_LITE2 = scaled(EFFICIENTNET_LITE0, width=1.1, depth=1.2)
EFFICIENTNET_LITE3 = scaled(EFFICIENTNET_LITE0, width=1.2, depth=1.4)
EFFICIENTNET_LITE4 = scaled(EFFICIENTNET_LITE0, width=1.4, depth=1.8)

# Padding and epsilon are torch's, as in timm's `efficientnet_b0`, whose weights most users of timm
# take. `tf_efficientnet_b0` has those of TensorFlow.
# Source: Tan and Le 2019, https://arxiv.org/abs/1905.11946, Table 1.
EFFICIENTNET_B0 = Architecture(
    stem=32,
    stages=(
        (Row("separable", 16, squeeze=0.25),),
        (Row("inverted", 24, 2, stride=2, expansion=6, squeeze=0.25),),
        (Row("inverted", 40, 2, stride=2, kernel=5, expansion=6, squeeze=0.25),),
        (Row("inverted", 80, 3, stride=2, expansion=6, squeeze=0.25),),
        (Row("inverted", 112, 3, kernel=5, expansion=6, squeeze=0.25),),
        (Row("inverted", 192, 4, stride=2, kernel=5, expansion=6, squeeze=0.25),),
        (Row("inverted", 320, 1, expansion=6, squeeze=0.25),),
    ),
    activation="silu",
)


def _efficientnet_v2(stem: int, *stages: Row) -> Architecture:
    return Architecture(stem, tuple((row,) for row in stages), "silu", "same", 1e-3)


# Source: Tan and Le 2021, https://arxiv.org/abs/2104.00298: Table 4 is S; the others are those of
# the authors' code. Padding is TensorFlow's, as in the published weights; torchvision's S and M
# have "torch", which differs where a convolution of stride 2 meets maps of even size.
EFFICIENTNET_V2_B0 = _efficientnet_v2(
    32,
    Row("conv", 16),
    Row("fused", 32, 2, stride=2, expansion=4),
    Row("fused", 48, 2, stride=2, expansion=4),
    Row("inverted", 96, 3, stride=2, expansion=4, squeeze=0.25),
    Row("inverted", 112, 5, expansion=6, squeeze=0.25),
    Row("inverted", 192, 8, stride=2, expansion=6, squeeze=0.25),
)
EFFICIENTNET_V2_S = _efficientnet_v2(
    24,
    Row("conv", 24, 2),
    Row("fused", 48, 4, stride=2, expansion=4),
    Row("fused", 64, 4, stride=2, expansion=4),
    Row("inverted", 128, 6, stride=2, expansion=4, squeeze=0.25),
    Row("inverted", 160, 9, expansion=6, squeeze=0.25),
    Row("inverted", 256, 15, stride=2, expansion=6, squeeze=0.25),
)
EFFICIENTNET_V2_M = _efficientnet_v2(
    24,
    Row("conv", 24, 3),
    Row("fused", 48, 5, stride=2, expansion=4),
    Row("fused", 80, 5, stride=2, expansion=4),
    Row("inverted", 160, 7, stride=2, expansion=4, squeeze=0.25),
    Row("inverted", 176, 14, expansion=6, squeeze=0.25),
    Row("inverted", 304, 18, stride=2, expansion=6, squeeze=0.25),
    Row("inverted", 512, 5, expansion=6, squeeze=0.25),
)
