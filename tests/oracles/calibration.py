"""The calibration error in NumPy, one bin and one example at a time."""

import numpy as np


def error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, Eq. 3: bin m of M holds the confidences in ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        right, confidences = [], []
        for row, label in zip(probabilities, labels, strict=True):
            if (m - 1) / bins < row.max() <= m / bins:
                right.append(row.argmax() == label)
                confidences.append(row.max())
        if right:
            gap = abs(np.mean(right) - np.mean(confidences))
            total += len(right) / len(labels) * float(gap)
    return total
