"""ResNets: stems and initial parameters; test_students.py compares outputs with timm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import resnet


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    """A ResNet with one block, and its variables."""
    model = resnet.make(depths=(1,), classes=3)
    return model, models.init(model, jax.random.key(0), 32)


def test_the_small_stem_keeps_the_size_of_the_images() -> None:
    shapes = models.shapes(models.make("resnet18", classes=10, stem="small"), 32)
    assert shapes["conv1"]["kernel"].shape == (3, 3, 3, 64)


def test_every_block_starts_as_the_identity(small: tuple[Any, Any]) -> None:
    _, variables = small
    np.testing.assert_array_equal(variables["params"]["layer1_0"]["bn2"]["scale"], 0.0)


def test_the_last_norm_of_a_bottleneck_is_initialised_to_zero() -> None:
    block = resnet.Bottleneck(features=2, stride=1)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)["params"]
    np.testing.assert_array_equal(params["bn3"]["scale"], 0.0)
    np.testing.assert_array_equal(params["bn2"]["scale"], 1.0)


def test_training_moves_the_running_statistics_by_a_tenth(small: tuple[Any, Any]) -> None:
    model, variables = small
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))

    _, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])

    kernel = variables["params"]["conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.1 * np.asarray(maps).mean((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["bn1"]["mean"], expected, atol=1e-6)


def test_uint8_images_are_refused(small: tuple[Any, Any]) -> None:
    model, variables = small
    with pytest.raises(TypeError, match="got uint8"):
        model.apply(variables, jnp.zeros((1, 32, 32, 3), jnp.uint8))


def test_an_unknown_stem_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"stem must be one of.*'small'"):
        models.make("resnet18", classes=2, stem="tiny")


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of.*'bfloat16'"):
        models.make("resnet18", classes=2, dtype="int8")
