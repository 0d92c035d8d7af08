"""Conditional mutual information agrees with a slow loop, SciPy and torch."""

from typing import Any

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from jaxtyping import Array, Float
from scipy import stats

from remem_jax import losses, mesh
from tests.oracles import mcmi_numpy, peers

CLASSES = 6
KINDS = pytest.mark.parametrize("mixed", [False, True])

cmi = jax.jit(losses.conditional_mutual_information)
cmi_and_grad = jax.jit(jax.value_and_grad(losses.conditional_mutual_information))


@pytest.fixture
def logits(rng: np.random.Generator) -> Float[Array, "batch classes"]:
    return jnp.asarray(rng.normal(0, 3, (12, CLASSES)), jnp.float32)


@pytest.fixture
def labels(rng: np.random.Generator, mixed: bool) -> Array:
    """Three classes with several images, one with a single image, two with none; or soft labels."""
    if not mixed:
        return jnp.asarray([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 4], jnp.int32)
    shares = rng.dirichlet(np.ones(CLASSES), 12)
    shares[:, 3] = 0
    shares[3:, 4] = 0
    return jnp.asarray(shares / shares.sum(-1, keepdims=True), jnp.float32)


def torch_value_and_grad(logits: Array, labels: Array) -> tuple[float, np.ndarray]:
    """Computes the definition in torch, in float64, with a gradient through the centroids."""
    torch = peers.torch()
    shares = mcmi_numpy.weights(np.asarray(labels), logits.shape[1])
    shares = torch.tensor(shares[:, shares.any(0)])
    leaf = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
    log_probs = leaf.log_softmax(1)
    centroids = (shares / shares.sum(0)).T @ log_probs.exp()
    ratios = log_probs[:, None] - centroids.log()[None]
    value = (shares[:, :, None] * log_probs.exp()[:, None] * ratios).sum() / shares.sum()
    value.backward()
    return value.item(), leaf.grad.numpy()


@KINDS
def test_agrees_with_a_slow_loop(logits: Array, labels: Array) -> None:
    expected = mcmi_numpy.conditional_mutual_information(np.asarray(logits), np.asarray(labels))

    actual = cmi(logits, labels)

    assert expected > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@KINDS
def test_is_the_entropy_of_the_centroid_minus_that_of_its_images(
    logits: Array, labels: Array
) -> None:
    probs = np.exp(np.asarray(jax.nn.log_softmax(logits), np.float64))
    shares = mcmi_numpy.weights(np.asarray(labels), CLASSES)
    shares = shares[:, shares.any(0)]
    class_sizes = shares.sum(0)
    centroids = (shares / class_sizes).T @ probs  # SciPy removes rounding errors by normalising.
    within = (shares / class_sizes).T @ np.asarray(stats.entropy(probs, axis=-1))
    gained = np.asarray(stats.entropy(centroids, axis=-1)) - within
    expected = (class_sizes / class_sizes.sum() * gained).sum()

    np.testing.assert_allclose(cmi(logits, labels), expected, rtol=1e-5)


@KINDS
def test_the_gradient_matches_torch_through_the_centroids(logits: Array, labels: Array) -> None:
    expected, expected_grads = torch_value_and_grad(logits, labels)

    actual, grads = cmi_and_grad(logits, labels)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert np.abs(expected_grads).max() > 1e-2
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)


@KINDS
def test_the_gradient_matches_finite_differences(logits: Array, labels: Array) -> None:
    base, step = np.asarray(logits, np.float64), 1e-5
    expected = np.zeros_like(base)
    for index in np.ndindex(*base.shape):
        moved = np.zeros_like(base)
        moved[index] = step
        up, down = (
            mcmi_numpy.conditional_mutual_information(base + sign * moved, np.asarray(labels))
            for sign in (1, -1)
        )
        expected[index] = (up - down) / (2 * step)

    _, grads = cmi_and_grad(logits, labels)

    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-6)


def test_one_hot_labels_are_equivalent_to_indices(logits: Array) -> None:
    labels = jnp.arange(12) % 4
    expected = cmi_and_grad(logits, labels)

    actual = cmi_and_grad(logits, jax.nn.one_hot(labels, CLASSES))

    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mixed", [True])
def test_the_scale_of_the_weights_does_not_matter(logits: Array, labels: Array) -> None:
    np.testing.assert_allclose(cmi(logits, 7 * labels), cmi(logits, labels), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
def test_is_zero_if_all_images_of_a_class_have_the_same_prediction(
    logits: Array, scale: float
) -> None:
    labels = jnp.arange(12) % 4
    repeated = scale * logits[:4][labels]

    value, grads = cmi_and_grad(repeated, labels)

    assert value == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(grads, 0.0, atol=1e-6)


def test_is_zero_if_each_class_has_one_image(logits: Array) -> None:
    value, grads = cmi_and_grad(logits[:CLASSES], jnp.arange(CLASSES))

    assert value == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(grads, 0.0, atol=1e-6)


def test_is_greatest_if_each_image_is_confidently_given_a_different_class() -> None:
    logits = 1e3 * jnp.eye(CLASSES)
    labels = jnp.full(CLASSES, 2)

    np.testing.assert_allclose(cmi(logits, labels), np.log(CLASSES), rtol=1e-6)


@pytest.mark.parametrize("mixed", [False])
def test_the_only_image_of_a_class_adds_0_to_the_mean(logits: Array, labels: Array) -> None:
    without = cmi(logits[:-1], labels[:-1])  # The last image is the only one of its class.

    np.testing.assert_allclose(cmi(logits, labels), 11 / 12 * without, rtol=1e-5)


@KINDS
def test_the_order_of_the_batch_does_not_matter(
    logits: Array, labels: Array, rng: np.random.Generator
) -> None:
    order = jnp.asarray(rng.permutation(12))
    expected, expected_grads = cmi_and_grad(logits, labels)

    actual, grads = cmi_and_grad(logits[order], labels[order])

    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(grads, expected_grads[order], rtol=1e-4, atol=1e-7)


@KINDS
@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4, -1e4, 1e30])
def test_value_and_gradient_are_correct_and_finite_at_any_scale(
    logits: Array, labels: Array, scale: float
) -> None:
    scaled = scale * logits / jnp.abs(logits).max()
    expected = mcmi_numpy.conditional_mutual_information(np.asarray(scaled), np.asarray(labels))

    value, grads = cmi_and_grad(scaled, labels)

    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(grads).all()


@KINDS
def test_accepts_bfloat16_and_computes_in_float32(logits: Array, labels: Array) -> None:
    low = logits.astype(jnp.bfloat16)

    actual = cmi(low, labels)

    assert actual.dtype == jnp.float32
    assert actual == cmi(low.astype(jnp.float32), labels)


@KINDS
def test_a_batch_on_two_devices_has_the_value_and_gradient_of_one_device(
    logits: Array, labels: Array
) -> None:
    expected, expected_grads = cmi_and_grad(logits, labels)
    of_each_half = [float(cmi(logits[i::2], labels[i::2])) for i in range(2)]

    devices = mesh.make_mesh()
    split: Any = jax.device_put((logits, labels), mesh.batch_sharding(devices))
    actual, grads = cmi_and_grad(*split)

    assert devices.size == 2
    assert not split[0].is_fully_replicated
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)
    # Half of a batch has its own centroids, which are nearer to its images.
    assert np.mean(of_each_half) < 0.99 * expected


def test_a_small_batch_underestimates_by_the_factor_in_the_docstring(
    rng: np.random.Generator,
) -> None:
    # The noise is so small that only the second order matters; 64 batches of 60 images, 20 classes.
    centres = rng.normal(0, 1, (20, 20))
    labels = rng.integers(0, 20, (64, 60))
    logits = centres[labels] + rng.normal(0, 0.3, (64, 60, 20))
    present = np.mean([len(np.unique(row)) for row in labels])
    whole = float(
        cmi(jnp.asarray(logits.reshape(-1, 20), jnp.float32), jnp.asarray(labels.ravel()))
    )

    batches = jax.vmap(losses.conditional_mutual_information)
    mean = float(jnp.mean(batches(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))))

    # This is a mean of 3,840 squares of 20 numbers; 1 - present / batch is about 0.68.
    assert mean / whole == pytest.approx(1 - present / 60, rel=0.03)


@KINDS
@hypothesis.given(data=strategies.data())
@hypothesis.settings(deadline=None)
def test_stays_within_its_bounds(data: strategies.DataObject, mixed: bool) -> None:
    arrays = hypothesis.extra.numpy.arrays
    logits = data.draw(arrays(np.float32, (5, 3), elements=strategies.floats(-200, 200, width=32)))
    if mixed:
        shares = arrays(np.float32, (5, 3), elements=strategies.floats(0, 1, width=32))
        labels = data.draw(shares.filter(lambda x: x.sum() > 1e-3))
    else:
        labels = data.draw(arrays(np.int32, 5, elements=strategies.integers(0, 2)))

    value = cmi(jnp.asarray(logits), jnp.asarray(labels))

    # The slack covers float32 rounding of logarithms of up to 200.
    assert -1e-5 <= value <= np.log(3) + 1e-5


def test_an_mcmi_teacher_minimises_cross_entropy_minus_weighted_information(
    rng: np.random.Generator,
) -> None:
    logits = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 8), jnp.int32)

    actual = losses.supervised(logits, labels, smoothing=0.1, mcmi=0.25)

    expected = losses.cross_entropy(logits, labels, smoothing=0.1)
    expected -= 0.25 * losses.conditional_mutual_information(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
