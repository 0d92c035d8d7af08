"""What every student must satisfy, one record of `models.STUDENTS` at a time.

tests/docs/test_extending.py runs these tests with the example of docs/extending/student.md, too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.weights import torch_names

pytestmark = pytest.mark.parametrize("name", list(models.STUDENTS))
SIDE = 64


def shapes_of(name: str, *, classes: int = 3, **options: Any) -> dict[str, Any]:
    """Variables of a student as shapes, by slash-joined name."""
    model = models.make(name, classes=classes, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    return traverse_util.flatten_dict(variables, sep="/")


def test_the_head_has_the_parameters_that_depend_on_the_classes(name: str) -> None:
    few, many = (shapes_of(name, classes=classes) for classes in (3, 5))

    changed = {path for path, leaf in few.items() if leaf.shape != many[path].shape}

    assert changed == {f"params/{path}" for path in models.STUDENTS[name].head}


def test_variables_are_float32_parameters_and_running_statistics(name: str) -> None:
    found = shapes_of(name, dtype="bfloat16")

    assert {path.split("/")[0] for path in found} <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}


def test_logits_are_float32_in_any_compute_type(name: str) -> None:
    model = models.make(name, classes=3, dtype="bfloat16")
    images = jnp.zeros((2, SIDE, SIDE, 3))

    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)

    assert (logits.shape, logits.dtype) == ((2, 3), np.dtype(np.float32))


def test_the_head_takes_the_maps_of_the_trunk(name: str) -> None:
    model, images = models.make(name, classes=3), jnp.zeros((2, SIDE, SIDE, 3))

    def both() -> Any:
        variables = model.init(jax.random.key(0), images)
        maps = model.apply(variables, images, train=False, method="trunk")
        return maps, model.apply(variables, maps, train=False, method="head")

    maps, logits = jax.eval_shape(both)

    assert maps.shape[-1] == models.trunk_channels(model, SIDE)
    assert logits.shape == (2, 3)


def test_both_stems_have_parameters_of_the_same_names(name: str) -> None:
    assert set(shapes_of(name, stem="small")) == set(shapes_of(name, stem="imagenet"))


def test_images_of_integers_are_refused(name: str) -> None:
    model, images = models.make(name, classes=3), jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8)
    with pytest.raises(TypeError, match="got uint8"):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_unknown_stems_and_types_are_refused(name: str) -> None:
    for option in ("stem", "dtype"):
        with pytest.raises(ValueError, match=rf"{option} must be one of"):
            models.make(name, classes=3, **{option: "int8"})


def test_the_names_of_files_are_translated_back(name: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {path: rng.normal(size=leaf.shape) for path, leaf in shapes_of(name).items()}
    variables = traverse_util.unflatten_dict(arrays, sep="/")

    back = torch_names.from_timm(torch_names.to_timm(variables))

    jax.tree.map(np.testing.assert_array_equal, back, variables)
