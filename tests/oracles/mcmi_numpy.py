"""Conditional mutual information in NumPy, in float64, one divergence at a time."""

import numpy as np
from scipy import special


def weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the share of each class in each image."""
    return np.eye(classes)[labels] if labels.ndim == 1 else np.asarray(labels, np.float64)


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Returns KL(p || q) in nats; classes with p = 0 add nothing."""
    total = 0.0
    for a, b in zip(log_p, log_q, strict=True):
        if np.exp(a) > 0:
            total += np.exp(a) * (a - b)
    return total


def conditional_mutual_information(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the weighted mean divergence of images from the centroids of their classes."""
    log_probs = special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    shares = weights(labels, log_probs.shape[1])
    total = 0.0
    for share in shares.T:
        if not share.any():
            continue
        log_centroid = special.logsumexp(log_probs, axis=0, b=share[:, None] / share.sum())
        for weight, log_p in zip(share, log_probs, strict=True):
            if weight > 0:
                total += weight * divergence(log_p, log_centroid)
    return total / shares.sum()
