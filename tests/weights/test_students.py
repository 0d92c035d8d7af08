"""Files of students: loading undoes saving, and errors name what does not fit."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.weights import students, timm


def filled(model: Any, rng: np.random.Generator) -> Any:
    """Random variables, nowhere zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda s: 1 - rng.random(s.shape, np.float32), shapes)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("resnet18", "timm"),
        ("resnet50", "torchvision"),
        ("mobilenet_v2", "timm"),
        ("mobilenet_v2", "torchvision"),
        ("efficientnet_v2_b0", "timm"),
        ("efficientnet_v2_s", "torchvision"),
        ("regnety_004", "torchvision"),
        ("resnet26d", "timm"),
    ],
)
def test_loading_undoes_saving(
    name: str, form: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    model = models.make(name, classes=3)
    variables = filled(model, rng)

    students.save(tmp_path / "x.safetensors", variables, form=form)

    loaded = students.load(tmp_path / "x.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_arrays_that_do_not_fit_are_named(rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    students.save(path, filled(models.make("resnet18", classes=3), rng))

    with pytest.raises(SettingError, match=r"mis-shaped: params/fc/bias \(3,\) instead of \(4,\)"):
        students.load(path, models.make("resnet18", classes=4))
    with pytest.raises(SettingError, match="missing: batch_stats/layer1_2/bn1/mean"):
        students.load(path, models.make("resnet34", classes=3))


def test_an_array_of_another_network_is_named(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "x.safetensors"
    model = models.make("resnet18", classes=3)
    students.save(path, filled(model, rng))
    timm.save(path, timm.read(path) | {"fc.scale": np.zeros(3, np.float32)})

    with pytest.raises(SettingError, match="unexpected: params/fc/scale"):
        students.load(path, model)
