"""Temperature scaling of a classifier, and its calibration before and after.

Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2 and Eq. 3.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from remem_jax.tallies import BINS

# Temperatures are searched between these two. Without an error on the images, the loss falls with
# the temperature without end.
LOWEST, HIGHEST = 0.05, 20.0
_ROWS = 4096  # Images that are converted to float64 at once.

Logits = Float[np.ndarray, "image classes"]
Classes = Int[np.ndarray, " image"]


class Calibration(NamedTuple):
    """How well the probabilities of a classifier fit the labels.

    Attributes:
        nll: Mean negative log-likelihood of the labels, in nats.
        ece: Expected calibration error over `tallies.BINS` bins of equal width, from 0 to 1.
    """

    nll: float
    ece: float


def temperature(logits: Logits, labels: Classes) -> float:
    """Returns the temperature T that minimises the loss of logits / T, from 0.05 to 20.

    Args:
        logits: Unnormalised log-probabilities, of images that the classifier was not trained on.
        labels: Their classes.
    """
    found = optimize.minimize_scalar(
        lambda log_t: _loss(logits, labels, np.exp(log_t)),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def measure(logits: Logits, labels: Classes, *, temperature: float) -> Calibration:
    """Returns the calibration of logits / temperature."""
    confidences, right = [], []
    for rows, classes in _chunks(logits, labels):
        probabilities = special.softmax(rows / temperature, axis=-1)
        confidences.append(probabilities.max(axis=-1))
        right.append(rows.argmax(axis=-1) == classes)
    confidence = np.concatenate(confidences)
    # Bin i holds the confidences in (i / BINS, (i + 1) / BINS], as in `evaluate`.
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")
    gaps = np.bincount(bins, np.concatenate(right) - confidence, minlength=BINS)
    return Calibration(
        _loss(logits, labels, temperature), float(np.abs(gaps).sum()) / len(confidence)
    )


def _loss(logits: Logits, labels: Classes, temperature: float) -> float:
    total = 0.0
    for rows, classes in _chunks(logits, labels):
        scaled = rows / temperature
        total += np.sum(special.logsumexp(scaled, axis=-1) - scaled[np.arange(len(rows)), classes])
    return float(total / len(labels))


def _chunks(logits: Logits, labels: Classes) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (logits[i : i + _ROWS].astype(np.float64), labels[i : i + _ROWS])
        for i in range(0, len(labels), _ROWS)
    ]
