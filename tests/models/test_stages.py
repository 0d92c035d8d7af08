"""The stages of students and the blocks of teachers, compared with timm's and with Flax's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.analysis import activations
from remem_jax.models import projection, resnet, stages, vit
from tests.oracles import peers

DEPTH = 5
SIZE = vit.Size(patch=8, features=12, depth=DEPTH, heads=2)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (2, 5, 8, 11)), (27, (6, 13, 20, 26)), (5, (1, 2, 3, 4)), (2, (0, 1)), (1, (0,))],
)
def test_the_blocks_of_a_vit_end_its_quarters(depth: int, expected: tuple[int, ...]) -> None:
    assert stages.blocks(depth) == expected


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "regnety_004",
        "mobilenet_v2_035",
        "mobilenetv4_conv_small",
        "efficientnet_v2_b0",
    ],
)
def test_the_stages_of_a_cnn_are_timms_last_ones(name: str) -> None:
    timm = peers.timm()
    theirs = timm.create_model(models.STUDENTS[name].timm, features_only=True)
    channels = theirs.feature_info.channels()[-4:-1]

    found = stages.of_student(models.make(name, classes=3), 64)

    # timm's last stage ends before the last convolution, which is part of the trunk here.
    assert [stage.channels for stage in found][:-1] == channels
    assert found[-1].name == ""


def test_a_vit_has_a_stage_for_each_quarter() -> None:
    found = stages.of_student(models.make("vit_tiny_patch16", classes=3), 32)

    assert [stage.channels for stage in found] == [192] * 4


def test_the_maps_of_a_cnns_stages_are_those_that_flax_captures(key: jax.Array) -> None:
    model: Any = resnet.make(depths=(1, 2, 1), classes=3)
    variables = models.init(model, key, 32)
    images = jax.random.normal(key, (2, 32, 32, 3))
    targets = (projection.Target("layers", side=2, width=6, layers=3),)
    params = projection.add(variables, key, models.projected(model, targets, 32))["params"]
    captured: Any
    _, captured = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )

    statistics = {"batch_stats": variables["batch_stats"]}
    outputs, _ = jax.jit(models.student_apply(model, targets))(params, statistics, images, key)

    names = [name for name, _ in stages.of_student(model, 32)]
    assert names == ["bn1", "layer1_0", "layer2_1", ""]  # The first has no layer to predict.
    for i, name in enumerate(("layer1_0", "layer2_1", "layer3_0")):
        (maps,) = captured["intermediates"][name]["__call__"]
        expected = projection.patches(params["projection"][f"layer_{i + 1}"], maps, 2)
        np.testing.assert_allclose(outputs.layers[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({}, (1, 2, 3)), ({"pruned_mlp": 1}, (3,)), ({"scan": False}, (1, 2, 3))],
)
def test_taps_of_scanned_blocks_are_the_outputs_of_the_blocks(
    options: dict[str, Any], wanted: tuple[int, ...], key: jax.Array
) -> None:
    model = vit.VisionTransformer(SIZE, classes=3, registers=2, **options)
    variables = models.init(model, key, 16)
    images = jax.random.uniform(key, (2, 16, 16, 3), jnp.float32, -1, 1)
    expected = activations.make_capture(model, wanted)(variables, images).tokens

    _, sown = model.apply(variables, images, taps=wanted, mutable=["taps"], method="trunk")
    found = stages.of_taps(model, sown)

    assert len(found) == len(wanted)
    for layer, tokens in zip(wanted, found, strict=True):
        np.testing.assert_allclose(tokens, expected[layer][:, 3:], rtol=1e-4, atol=1e-5)


def test_taps_of_blocks_without_sub_blocks_are_the_tokens_before_them(key: jax.Array) -> None:
    pruned = vit.VisionTransformer(SIZE, classes=3, pruned_mlp=2, pruned_attention=2)
    variables = models.init(pruned, key, 16)
    images = jax.random.uniform(key, (2, 16, 16, 3), jnp.float32, -1, 1)

    outputs: Any = models.teacher_apply(pruned, ("layers",))(variables, images)
    layers = outputs.layers

    assert len(layers) == 4
    assert not np.allclose(layers[0], layers[1])
    for last in layers[2:]:
        np.testing.assert_array_equal(last, layers[1])
