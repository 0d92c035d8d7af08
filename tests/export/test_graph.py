"""Functions as ONNX graphs, compared with JAX, and unsupported operations."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jaxtyping import Array

from remem_jax.checks import SettingError
from remem_jax.export import graph
from remem_jax.records import Apply, Variables

IMAGES = graph.Input(4, "float32", 0)


def run(apply: Apply, variables: Variables, images: np.ndarray) -> np.ndarray:
    model = graph.of_apply(apply, variables, IMAGES)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"images": images})[0]


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, 4, 4, 3)).astype(np.float32)


def uses_twice(variables: Variables, images: Array) -> Array:
    """Two nodes use this product, so that the bias must not be fused into it."""
    product = jnp.mean(images, axis=(1, 2)) @ variables["kernel"]
    return (product + variables["bias"][None]) * product


def by_rows(variables: Variables, images: Array) -> Array:
    """Adds constants that vary along rows and thus are not channel biases."""
    sums = images - variables["rows"]
    return jnp.sum(jnp.maximum(sums, 0.5), axis=(1, 2)) / 16


@pytest.mark.parametrize("apply", [uses_twice, by_rows])
def test_graphs_compute_the_same_as_jax(
    apply: Apply, images: np.ndarray, rng: np.random.Generator
) -> None:
    variables = {
        "kernel": rng.normal(size=(3, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
        "rows": rng.normal(size=(1, 4, 1, 1)).astype(np.float32),
    }

    result = run(apply, variables, images)

    np.testing.assert_allclose(result, apply(variables, jnp.asarray(images)), rtol=1e-5, atol=1e-6)


def test_an_operation_without_a_node_is_named() -> None:
    def sorts(variables: Variables, images: Array) -> Array:
        del variables
        return jnp.sort(jnp.mean(images, axis=(1, 2)))

    with pytest.raises(SettingError, match="no ONNX node for the operation sort"):
        graph.of_apply(sorts, {}, IMAGES)


def test_operations_on_constants_are_computed_at_export(images: np.ndarray) -> None:
    def shifts(variables: Variables, images: Array) -> Array:
        shift = jax.lax.rsqrt(jnp.exp(variables["shift"]))
        return jnp.mean(images, axis=(1, 2)) + shift[None]

    variables = {"shift": np.zeros(3, np.float32)}

    model = graph.of_apply(shifts, variables, IMAGES)

    assert "Exp" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(
        run(shifts, variables, images), images.mean(axis=(1, 2)) + 1, rtol=1e-5
    )
