"""The loss at the worst point near the parameters, for models whose losses have a closed form."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from remem_jax import sam
from remem_jax.analysis import flatness
from remem_jax.records import Params

CLASSES, PIXELS, EXAMPLES = 3, 4, 10
RADIUS = 0.3


def apply(variables: Params, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ variables["params"]["kernel"]


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel, images and labels."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(EXAMPLES, 2, 2, 1)).astype(np.float32)
    kernel = rng.normal(size=(PIXELS, CLASSES)).astype(np.float32)
    return kernel, images, rng.integers(CLASSES, size=EXAMPLES)


def measure(problem: tuple[np.ndarray, np.ndarray, np.ndarray], size: int) -> flatness.Flatness:
    kernel, images, labels = problem

    def batches() -> Iterator[flatness.Examples]:
        for start in range(0, EXAMPLES, size):
            rows = np.arange(start, start + size)
            counted = jnp.asarray(rows < EXAMPLES, jnp.float32)
            rows = rows % EXAMPLES  # Padding has other images, which do not count.
            yield jnp.asarray(images[rows]), jnp.asarray(labels[rows]), counted

    params = {"kernel": jnp.asarray(kernel)}
    return flatness.measure(apply, params, batches, radius=RADIUS)


def loss(kernel: np.ndarray, images: np.ndarray, labels: np.ndarray) -> float:
    logits = images.reshape(EXAMPLES, -1).astype(np.float64) @ kernel
    return float(-np.mean(special.log_softmax(logits, axis=-1)[np.arange(EXAMPLES), labels]))


@pytest.mark.parametrize("size", [4, 10])
def test_the_losses_are_those_of_numpy_at_any_batch_size(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], size: int
) -> None:
    kernel, images, labels = problem
    flat = images.reshape(EXAMPLES, -1).astype(np.float64)
    error = special.softmax(flat @ kernel, axis=-1) - np.eye(CLASSES)[labels]
    gradient = flat.T @ error / EXAMPLES
    norm = np.linalg.norm(gradient)

    measured = measure(problem, size)

    assert measured.loss == pytest.approx(loss(*problem), rel=1e-5)
    assert measured.gradient_norm == pytest.approx(norm, rel=1e-5)
    worst = kernel + RADIUS * gradient / norm
    assert measured.worst == pytest.approx(loss(worst, images, labels), rel=1e-5)


def test_the_worst_point_is_that_of_sam(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    kernel, images, labels = problem

    def objective(params: Params) -> jax.Array:
        logits = apply({"params": params}, jnp.asarray(images))
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(EXAMPLES), jnp.asarray(labels)])

    ascent = sam.sam(RADIUS)
    params = {"kernel": jnp.asarray(kernel)}
    worst, _ = ascent.update(
        jax.grad(objective)(params), ascent.init(params), params, grad_fn=lambda point: point
    )

    assert measure(problem, EXAMPLES).worst == pytest.approx(float(objective(worst)), rel=1e-5)
