"""How many seeds a paired comparison needs.

Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2: the power of
the t-test, from the noncentral t distribution.
"""

import math

import numpy as np
from scipy import stats

LEVEL = 0.05  # Of the two-sided test.
POWER = 0.8
MOST_SEEDS = 1000


def power(mean: float, deviation: float, n: int) -> float:
    """Returns the probability that a paired t-test over n seeds finds a difference.

    Args:
        mean: True mean of the differences.
        deviation: True standard deviation of the differences, above 0, in the same unit.
        n: Number of seeds, at least 2.
    """
    noncentrality = abs(mean) / deviation * math.sqrt(n)
    critical = stats.t.isf(LEVEL / 2, n - 1)
    # The lower tail is the upper one of the opposite mean. SciPy's `nct.cdf` can be NaN there.
    signs = np.array([1, -1])
    return float(np.sum(stats.nct.sf(critical, n - 1, signs * noncentrality)))


def seeds_needed(mean: float, deviation: float) -> int | None:
    """Returns the smallest number of seeds with a power of at least `POWER`.

    Args:
        mean: True mean of the differences.
        deviation: True standard deviation of the differences, above 0, in the same unit.

    Returns:
        From 2 to `MOST_SEEDS`; None if more are needed.
    """
    if power(mean, deviation, MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # The power increases with the number of seeds.
    while high - low > 1:
        middle = (low + high) // 2
        if power(mean, deviation, middle) < POWER:
            low = middle
        else:
            high = middle
    return high
