"""Losses, against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int
from scipy import special, stats

from remem_jax import losses


@pytest.fixture
def logits(rng: np.random.Generator) -> Float[Array, "2 batch klass"]:
    """Logits of a student and of a teacher."""
    return jnp.asarray(rng.normal(0, 3, size=(2, 5, 3)), jnp.float32)


@pytest.fixture
def labels() -> Int[Array, " batch"]:
    return jnp.asarray([0, 2, 1, 1, 0], jnp.int32)


def test_cross_entropy_is_the_mean_negative_log_probability(logits: Array, labels: Array) -> None:
    log_probs = special.log_softmax(np.asarray(logits[0], np.float64), axis=-1)
    expected = -log_probs[np.arange(5), labels].mean()

    assert losses.cross_entropy(logits[0], labels) == pytest.approx(expected, rel=1e-5)


def test_smoothing_mixes_in_the_uniform_distribution(logits: Array, labels: Array) -> None:
    log_probs = special.log_softmax(np.asarray(logits[0], np.float64), axis=-1)
    target = 0.9 * np.eye(3)[np.asarray(labels)] + 0.1 / 3
    expected = -(target * log_probs).sum(-1).mean()

    actual = losses.cross_entropy(logits[0], labels, smoothing=0.1)

    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_agrees_with_scipy(logits: Array, temperature: float) -> None:
    student, teacher = special.softmax(np.asarray(logits, np.float64) / temperature, axis=-1)
    expected = temperature**2 * np.asarray(stats.entropy(teacher, student, axis=-1)).mean()

    actual = losses.distillation(*logits, temperature=temperature)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_distillation_is_zero_when_the_student_matches(logits: Array) -> None:
    student, _ = logits
    assert losses.distillation(student, student, 2.0) == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_reaches_the_teacher(logits: Array) -> None:
    grads = jax.grad(losses.distillation, argnums=1)(*logits, 1.0)
    np.testing.assert_array_equal(grads, 0.0)


def test_the_gradient_of_distillation_is_that_of_the_closed_form(logits: Array) -> None:
    # d/ds T^2 KL(t || s) = T (softmax(s / T) - softmax(t / T)), over the batch.
    student, teacher = special.softmax(np.asarray(logits, np.float64) / 4.0, axis=-1)
    expected = 4.0 * (student - teacher) / 5

    actual = jax.grad(losses.distillation)(*logits, 4.0)

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_knowledge_distillation_weighs_labels_against_the_teacher(
    logits: Array, labels: Array, weight: float
) -> None:
    hard = losses.cross_entropy(logits[0], labels)
    soft = losses.distillation(logits[0], logits[1], 2.0)

    student, teacher = logits
    actual = losses.knowledge_distillation(student, teacher, labels, temperature=2.0, weight=weight)

    np.testing.assert_allclose(actual, (1 - weight) * hard + weight * soft, rtol=1e-6)


def test_sharp_logits_give_no_nan() -> None:
    student, teacher = jnp.asarray([[1e4, 0.0, -1e4]]), jnp.asarray([[-1e4, 0.0, 1e4]])
    assert np.isfinite(losses.distillation(student, teacher, 1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_may_be_shares_of_all_classes(
    logits: Array, rng: np.random.Generator, smoothing: float
) -> None:
    shares = rng.dirichlet(np.ones(3), 5)
    target = (1 - smoothing) * shares + smoothing / 3
    expected = -(target * special.log_softmax(np.asarray(logits[0], np.float64), -1)).sum(-1).mean()

    actual = losses.cross_entropy(logits[0], jnp.asarray(shares, jnp.float32), smoothing=smoothing)

    assert actual == pytest.approx(expected, rel=1e-5)
