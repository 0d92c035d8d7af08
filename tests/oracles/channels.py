"""Channels whose mutual information is known in closed form, in nats."""

import numpy as np


def binary_entropy(share: float) -> float:
    """Returns the binary entropy of a probability."""
    return -sum(p * float(np.log(p)) for p in (share, 1 - share) if p > 0)


def symmetric_information(flipped: float) -> float:
    """Returns the information per pixel when this share of fair binary pixels is flipped."""
    return float(np.log(2)) - binary_entropy(flipped)


def symmetric_channel(
    rng: np.random.Generator, shape: tuple[int, ...], flipped: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draws fair pixels of 0 or 1, and a copy with exactly this share of zeros and ones flipped.

    The share must make a whole number of half the pixels. As it is exact, no decoder of single
    pixels has a loss below its entropy, not even by the luck of the draw.
    """
    size = int(np.prod(shape))
    pixels = np.repeat([0.0, 1.0], size // 2)
    assert float(flipped * (size // 2)).is_integer()
    flips = np.arange(size // 2) < flipped * (size // 2)
    received = np.abs(pixels - np.tile(flips, 2))
    order = rng.permutation(size)
    return pixels[order].reshape(shape), received[order].reshape(shape)


def gaussian_information(rho: float, dimensions: int) -> float:
    """Returns -d/2 log(1 - rho^2): the information of vectors correlated by coordinate."""
    return -dimensions / 2 * float(np.log(1 - rho**2))


def correlated_gaussians(
    rng: np.random.Generator, samples: int, dimensions: int, rho: float
) -> tuple[np.ndarray, np.ndarray]:
    """Samples the two vectors, with mean 0 and variance 1."""
    x, noise = rng.normal(size=(2, samples, dimensions))
    return x, rho * x + np.sqrt(1 - rho**2) * noise


def gaussian_scores(x: np.ndarray, y: np.ndarray, rho: float) -> np.ndarray:
    """Returns the optimal critic: log p(x | y) for all pairs, up to a term in x alone."""
    scores = np.zeros((len(x), len(y)))
    for i in range(len(x)):
        for j in range(len(y)):
            away = y[j] - rho * x[i]
            scores[i, j] = -(away @ away) / (2 * (1 - rho**2)) + y[j] @ y[j] / 2
    return scores


def info_nce(scores: np.ndarray) -> float:
    """Computes Eq. 4 of van den Oord et al. 2018, row by row."""
    rows = [
        row[i] - np.log(np.mean([np.exp(score) for score in row])) for i, row in enumerate(scores)
    ]
    return float(np.mean(rows))
