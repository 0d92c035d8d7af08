"""Tables of inverted-residual networks that are not students yet agree with timm.

The networks are EfficientNet-Lite2 and Lite4, MobileNetV3 and MobileNetV4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import architectures, inverted_residual
from remem_jax.models.architectures import Architecture, Head, Row, Squeeze
from remem_jax.weights import torch_names
from tests.models.test_students import (
    CLASSES,
    assert_same_logits,
    exported,
    randomised,
    state,
    timm_model,
)
from tests.oracles import peers


def inverted(channels: int, expansion: float, kernel: int = 3, **options: Any) -> Row:
    return Row("inverted", channels, kernel=kernel, expansion=expansion, **options)


def universal(channels: int, start: int, kernel: int, expansion: float, **options: Any) -> Row:
    return Row(
        "universal", channels, kernel=kernel, expansion=expansion, start_kernel=start, **options
    )


def conv(channels: int, kernel: int, stride: int = 1) -> Row:
    return Row("conv", channels, kernel=kernel, stride=stride, has_residual=False)


SQUEEZE_V3 = Squeeze("hard_sigmoid", "relu", of_expanded=True)
# Howard et al. 2019, https://arxiv.org/abs/1905.02244, Tables 1 and 2.
MOBILENET_V3_SMALL = Architecture(
    16,
    (
        (Row("separable", 16, stride=2, squeeze=0.25, activation="relu"),),
        (
            inverted(24, 4.5, stride=2, activation="relu"),
            inverted(24, 3.67, activation="relu"),
        ),
        (
            inverted(40, 4, 5, stride=2, squeeze=0.25),
            inverted(40, 6, 5, repeats=2, squeeze=0.25),
        ),
        (inverted(48, 3, 5, repeats=2, squeeze=0.25),),
        (inverted(96, 6, 5, repeats=3, stride=2, squeeze=0.25),),
        (conv(576, 1),),
    ),
    "hard_swish",
    head=Head(1024, after_pooling=True, has_norm=False),
    squeeze=SQUEEZE_V3,
)
MOBILENET_V3_LARGE = Architecture(
    16,
    (
        (Row("separable", 16, activation="relu"),),
        (inverted(24, 4, stride=2, activation="relu"), inverted(24, 3, activation="relu")),
        (inverted(40, 3, 5, repeats=3, stride=2, squeeze=0.25, activation="relu"),),
        (inverted(80, 6, stride=2), inverted(80, 2.5), inverted(80, 2.3, repeats=2)),
        (inverted(112, 6, repeats=2, squeeze=0.25),),
        (inverted(160, 6, 5, repeats=3, stride=2, squeeze=0.25),),
        (conv(960, 1),),
    ),
    "hard_swish",
    head=Head(1280, after_pooling=True, has_norm=False),
    squeeze=SQUEEZE_V3,
)
# Qin et al. 2024, https://arxiv.org/abs/2404.10518, Tables 11 and 12.
MOBILENET_V4_SMALL = Architecture(
    32,
    (
        (conv(32, 3, stride=2), conv(32, 1)),
        (conv(96, 3, stride=2), conv(64, 1)),
        (
            universal(96, 5, 5, 3, stride=2),
            universal(96, 0, 3, 2, repeats=4),
            universal(96, 3, 0, 4),
        ),
        (
            universal(128, 3, 3, 6, stride=2),
            universal(128, 5, 5, 4),
            universal(128, 0, 5, 4),
            universal(128, 0, 5, 3),
            universal(128, 0, 3, 4, repeats=2),
        ),
        (conv(960, 1),),
    ),
    "relu",
    head=Head(1280, after_pooling=True),
)
MOBILENET_V4_MEDIUM = Architecture(
    32,
    (
        (Row("fused", 48, stride=2, expansion=4),),
        (universal(80, 3, 5, 4, stride=2), universal(80, 3, 3, 2)),
        (
            universal(160, 3, 5, 6, stride=2),
            universal(160, 3, 3, 4, repeats=2),
            universal(160, 3, 5, 4),
            universal(160, 3, 3, 4),
            universal(160, 3, 0, 4),
            universal(160, 0, 0, 2),
            universal(160, 3, 0, 4),
        ),
        (
            universal(256, 5, 5, 6, stride=2),
            universal(256, 5, 5, 4),
            universal(256, 3, 5, 4, repeats=2),
            universal(256, 0, 0, 4),
            universal(256, 3, 0, 4),
            universal(256, 3, 5, 2),
            universal(256, 5, 5, 4),
            universal(256, 0, 0, 4, repeats=2),
            universal(256, 5, 0, 2),
        ),
        (conv(960, 1),),
    ),
    "relu",
    head=Head(1280, after_pooling=True),
)
TIMM = {
    "mobilenetv3_small_100": MOBILENET_V3_SMALL,
    "mobilenetv3_large_100": MOBILENET_V3_LARGE,
    "mobilenetv4_conv_small": MOBILENET_V4_SMALL,
    "mobilenetv4_conv_medium": MOBILENET_V4_MEDIUM,
    "tf_efficientnet_lite2": architectures.scaled(
        architectures.EFFICIENTNET_LITE0, width=1.1, depth=1.2
    ),
    "tf_efficientnet_lite4": architectures.scaled(
        architectures.EFFICIENTNET_LITE0, width=1.4, depth=1.8
    ),
}


@pytest.mark.parametrize("name", TIMM)
def test_names_and_shapes_match_timm(name: str) -> None:
    with peers.torch().device("meta"):
        peer = peers.timm().create_model(name, num_classes=CLASSES)
    model = inverted_residual.make(TIMM[name], classes=CLASSES)

    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    actual = {n: a.shape for n, a in torch_names.to_timm(zeros).items()}
    assert actual == {n: tuple(t.shape) for n, t in peer.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilenetv4_conv_small"])
def test_logits_of_the_onnx_file_match_timm(name: str) -> None:
    peer, images = randomised(timm_model(name))
    variables = torch_names.from_timm(state(peer))
    model = inverted_residual.make(TIMM[name], classes=CLASSES)

    assert_same_logits(exported(model, variables), peer, images)


def test_the_stochastic_depth_rate_rises_linearly_from_zero() -> None:
    rates: list[float] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "residual":
            rates.append(context.module.drop_path)
        return call(*args, **kwargs)

    model = models.make("efficientnet_lite0", classes=2, drop_path=0.32)
    with inverted_residual.nn.intercept_methods(watch):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    np.testing.assert_allclose(rates, 0.02 * np.arange(16))
