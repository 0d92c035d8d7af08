"""Means and paired differences over seeds, with Student's t intervals.

A seed repeats a whole run: split, teacher and students. The intervals therefore cover the variation
between runs, whereas `remem_jax.paired` covers the choice of test images for fixed models.

Source: Student 1908, https://doi.org/10.1093/biomet/6.1.1; the computation is SciPy's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_EQUAL = 1e-9  # Accuracies that differ by less are equal but for rounding.


class Mean(NamedTuple):
    """A mean over seeds, or of differences between two rows with the same seeds.

    Attributes:
        mean: The mean, in the unit of the values.
        n: Number of seeds.
        deviation: Sample standard deviation over seeds; None for one seed.
        low: Lower limit of the 95 % interval of the mean. None for one seed, and if all values are
            equal, because the variation between runs is then unknown.
        high: Upper limit.
        p_value: Two-sided p-value of such a mean if the true one is 0; None without an interval.
    """

    mean: float
    n: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of at least one value, with its interval.

    Raises:
        ValueError: If there is no value.
    """
    return difference(values, [0.0] * len(values))


def difference(above: Sequence[float], below: Sequence[float]) -> Mean:
    """Returns the mean paired difference of two rows, and its interval by the paired t-test.

    Args:
        above: For each seed, the accuracy of the first row, from 0 to 1.
        below: For the same seeds in the same order, that of the second.

    Raises:
        ValueError: If there is no seed, or if the numbers of seeds differ.
    """
    if not above or len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} values are not pairs.")
    gaps = np.asarray(above, np.float64) - np.asarray(below, np.float64)
    average, n = float(np.mean(gaps)), len(gaps)
    if n == 1:
        return Mean(average, n)
    if np.ptp(gaps) < _EQUAL:
        return Mean(average, n, 0.0)
    test = stats.ttest_rel(above, below)
    low, high = test.confidence_interval(CONFIDENCE)
    deviation = float(np.std(gaps, ddof=1))
    return Mean(average, n, deviation, float(low), float(high), float(test.pvalue))
