"""Metrics, against scikit-learn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from remem_jax import evaluate
from remem_jax.data import device

CLASSES = 5


def logits_of_pixels(variables: Any, images: jax.Array) -> jax.Array:
    """Logits that the images carry in their first pixels."""
    del variables
    return images[:, 0, :CLASSES, 0]


@pytest.fixture
def split(rng: np.random.Generator) -> device.Split:
    """23 examples of classes 0 to 3; the fifth class does not occur."""
    return device.Split(
        rng.integers(0, 256, (23, 2, CLASSES, 3)).astype(np.uint8),
        rng.choice(4, 23, p=[0.6, 0.2, 0.1, 0.1]).astype(np.int32),
    )


def measure(split: device.Split, batch_size: int) -> dict[str, float]:
    counts = evaluate.make_counts(
        logits_of_pixels, lambda key, images: images.astype(jnp.float32), CLASSES
    )
    batches = device.evaluation_batches(device.put(split), batch_size=batch_size)
    return evaluate.evaluate(jax.jit(counts), {}, batches)


@pytest.mark.parametrize("batch_size", [4, 23, 64])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [("top1", metrics.accuracy_score), ("mean_per_class", metrics.balanced_accuracy_score)],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_are_scikit_learns_whatever_the_batches(
    split: device.Split, batch_size: int, name: str, oracle: Any
) -> None:
    predicted = np.asarray(split.image)[:, 0, :CLASSES, 0].argmax(-1)

    actual = measure(split, batch_size)[name]

    assert actual == pytest.approx(oracle(split.label, predicted), rel=1e-6)


def test_the_loss_is_scikit_learns(split: device.Split) -> None:
    logits = np.asarray(split.image, np.float64)[:, 0, :CLASSES, 0]
    log_probs = logits - np.log(
        np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )
    log_probs -= logits.max(-1, keepdims=True)
    expected = -log_probs[np.arange(23), split.label].mean()

    assert measure(split, 7)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_probe_of_features_that_tell_the_classes_apart_is_right(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 200)
    features = np.eye(3)[labels] + rng.normal(0, 0.05, (200, 3))

    assert (
        evaluate.linear_probe((features[:150], labels[:150]), (features[150:], labels[150:])) == 1.0
    )


def test_a_probe_of_noise_is_at_chance(rng: np.random.Generator) -> None:
    labels, features = rng.integers(0, 4, 2000), rng.normal(size=(2000, 3))

    actual = evaluate.linear_probe(
        (features[:1000], labels[:1000]), (features[1000:], labels[1000:])
    )

    assert actual == pytest.approx(0.25, abs=0.06)  # Four standard errors.
