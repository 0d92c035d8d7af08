"""Temperature scaling, beside scikit-learn's and the evaluation's metrics."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn import metrics

from remem_jax import tallies
from remem_jax.analysis import calibration
from remem_jax.records import Batch

CLASSES = 5


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits and labels that were drawn from their probabilities."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(6000, CLASSES))
    labels = np.array([rng.choice(CLASSES, p=row) for row in special.softmax(logits, axis=-1)])
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_scale_of_the_logits(
    sample: tuple[np.ndarray, np.ndarray], scale: float
) -> None:
    logits, labels = sample

    assert calibration.temperature(scale * logits, labels) == pytest.approx(scale, rel=0.05)


def test_no_other_temperature_has_a_lower_loss(sample: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = 3 * sample[0], sample[1]
    found = calibration.temperature(logits, labels)

    losses = [
        metrics.log_loss(labels, special.softmax(logits.astype(np.float64) / value, axis=-1))
        for value in (found, *(found * np.array([0.9, 0.99, 1.01, 1.1])))
    ]

    assert losses[0] == min(losses)


def test_the_loss_is_that_of_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = sample
    expected = metrics.log_loss(labels, special.softmax(logits.astype(np.float64) / 1.7, axis=-1))

    assert calibration.measure(logits, labels, temperature=1.7).nll == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_error_is_that_of_the_evaluation(
    sample: tuple[np.ndarray, np.ndarray], temperature: float
) -> None:
    logits, labels = sample
    batch = Batch(
        jnp.zeros((len(labels), 1, 1, 3), jnp.uint8),
        jnp.asarray(labels),
        jnp.ones(len(labels), bool),
    )
    empty = tallies.init_tally(CLASSES, agreement=False, confusion=False)
    tally = tallies.count(empty, jnp.asarray(logits / temperature), batch)
    expected = tallies.metrics(tally)["calibration_error"]

    measured = calibration.measure(logits, labels, temperature=temperature).ece

    assert measured == pytest.approx(expected, abs=2e-4)  # An image at the edge of a bin.


def test_a_classifier_without_errors_gets_the_lowest_temperature() -> None:
    labels = np.arange(CLASSES)

    found = calibration.temperature(np.eye(CLASSES, dtype=np.float32), labels)

    assert found == pytest.approx(calibration.LOWEST, rel=0.01)
