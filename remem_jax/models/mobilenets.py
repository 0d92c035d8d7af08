"""MobileNets as tables, for `inverted_residual`; the types are those of `architectures`."""

from typing import Any

from remem_jax.models.architectures import Architecture, Head, Row, Squeeze, rounded, scaled


def mobilenet_v2(width: float = 1.0) -> Architecture:
    """Returns MobileNetV2, with the channels of all layers multiplied by `width`.

    At widths below 1, the head still has 1,280 channels.

    Source: Sandler et al. 2018, https://arxiv.org/abs/1801.04381, Table 2.
    """
    return scaled(_MOBILENET_V2, width=width)._replace(
        stem=rounded(32 * width), head=Head(max(1280, rounded(1280 * width)))
    )


_MOBILENET_V2 = Architecture(
    stem=32,
    stages=(
        (Row("separable", 16),),
        (Row("inverted", 24, 2, stride=2, expansion=6),),
        (Row("inverted", 32, 3, stride=2, expansion=6),),
        (Row("inverted", 64, 4, stride=2, expansion=6),),
        (Row("inverted", 96, 3, expansion=6),),
        (Row("inverted", 160, 3, stride=2, expansion=6),),
        (Row("inverted", 320, 1, expansion=6),),
    ),
    activation="relu6",
)


def _inverted(channels: int, expansion: float, kernel: int = 3, **options: Any) -> Row:
    return Row("inverted", channels, kernel=kernel, expansion=expansion, **options)


def _universal(channels: int, start: int, kernel: int, expansion: float, **options: Any) -> Row:
    return Row(
        "universal", channels, kernel=kernel, expansion=expansion, start_kernel=start, **options
    )


def _conv(channels: int, kernel: int, stride: int = 1) -> Row:
    return Row("conv", channels, kernel=kernel, stride=stride, has_residual=False)


_SQUEEZE_V3 = Squeeze("hard_sigmoid", "relu", of_expanded=True)
# Source: Howard et al. 2019, https://arxiv.org/abs/1905.02244, Tables 1 and 2. BatchNorm's epsilon
# and momentum are timm's; torchvision's networks have 1e-3 and a momentum of 0.99.
MOBILENET_V3_LARGE = Architecture(
    16,
    (
        (Row("separable", 16, activation="relu"),),
        (_inverted(24, 4, stride=2, activation="relu"), _inverted(24, 3, activation="relu")),
        (_inverted(40, 3, 5, repeats=3, stride=2, squeeze=0.25, activation="relu"),),
        (_inverted(80, 6, stride=2), _inverted(80, 2.5), _inverted(80, 2.3, repeats=2)),
        (_inverted(112, 6, repeats=2, squeeze=0.25),),
        (_inverted(160, 6, 5, repeats=3, stride=2, squeeze=0.25),),
        (_conv(960, 1),),
    ),
    "hard_swish",
    head=Head(1280, after_pooling=True, has_norm=False),
    squeeze=_SQUEEZE_V3,
)
MOBILENET_V3_SMALL = Architecture(
    16,
    (
        (Row("separable", 16, stride=2, squeeze=0.25, activation="relu"),),
        (_inverted(24, 4.5, stride=2, activation="relu"), _inverted(24, 3.67, activation="relu")),
        (
            _inverted(40, 4, 5, stride=2, squeeze=0.25),
            _inverted(40, 6, 5, repeats=2, squeeze=0.25),
        ),
        (_inverted(48, 3, 5, repeats=2, squeeze=0.25),),
        (_inverted(96, 6, 5, repeats=3, stride=2, squeeze=0.25),),
        (_conv(576, 1),),
    ),
    "hard_swish",
    head=Head(1024, after_pooling=True, has_norm=False),
    squeeze=_SQUEEZE_V3,
)
# Source: Qin et al. 2024, https://arxiv.org/abs/2404.10518, Tables 11 and 12.
MOBILENET_V4_SMALL = Architecture(
    32,
    (
        (_conv(32, 3, stride=2), _conv(32, 1)),
        (_conv(96, 3, stride=2), _conv(64, 1)),
        (
            _universal(96, 5, 5, 3, stride=2),
            _universal(96, 0, 3, 2, repeats=4),
            _universal(96, 3, 0, 4),
        ),
        (
            _universal(128, 3, 3, 6, stride=2),
            _universal(128, 5, 5, 4),
            _universal(128, 0, 5, 4),
            _universal(128, 0, 5, 3),
            _universal(128, 0, 3, 4, repeats=2),
        ),
        (_conv(960, 1),),
    ),
    "relu",
    head=Head(1280, after_pooling=True),
)
MOBILENET_V4_MEDIUM = Architecture(
    32,
    (
        (Row("fused", 48, stride=2, expansion=4),),
        (_universal(80, 3, 5, 4, stride=2), _universal(80, 3, 3, 2)),
        (
            _universal(160, 3, 5, 6, stride=2),
            _universal(160, 3, 3, 4, repeats=2),
            _universal(160, 3, 5, 4),
            _universal(160, 3, 3, 4),
            _universal(160, 3, 0, 4),
            _universal(160, 0, 0, 2),
            _universal(160, 3, 0, 4),
        ),
        (
            _universal(256, 5, 5, 6, stride=2),
            _universal(256, 5, 5, 4),
            _universal(256, 3, 5, 4, repeats=2),
            _universal(256, 0, 0, 4),
            _universal(256, 3, 0, 4),
            _universal(256, 3, 5, 2),
            _universal(256, 5, 5, 4),
            _universal(256, 0, 0, 4, repeats=2),
            _universal(256, 5, 0, 2),
        ),
        (_conv(960, 1),),
    ),
    "relu",
    head=Head(1280, after_pooling=True),
)
