"""Means and differences over seeds agree with closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from remem_jax.statistics import seeds

ABOVE, BELOW = [0.80, 0.83, 0.79, 0.85], [0.77, 0.79, 0.79, 0.80]


def test_the_interval_is_the_mean_plus_and_minus_t_standard_errors() -> None:
    gaps = np.subtract(ABOVE, BELOW)
    error = np.std(gaps, ddof=1) / 2
    half = stats.t.ppf(0.975, 3) * error

    result = seeds.difference(ABOVE, BELOW)

    assert (result.mean, result.n) == (pytest.approx(np.mean(gaps)), 4)
    assert result.deviation == pytest.approx(np.std(gaps, ddof=1))
    assert (result.low, result.high) == pytest.approx((np.mean(gaps) - half, np.mean(gaps) + half))
    assert result.p_value == pytest.approx(2 * stats.t.sf(np.mean(gaps) / error, 3))


def test_six_seeds_with_a_deviation_of_3_88_have_an_interval_of_4_07_to_each_side() -> None:
    # t is 2.571 with 5 degrees of freedom, as tables have it: 2.571 / sqrt(6) is 1.0496.
    values = stats.zscore([1.0, 2.0, 3.0, 5.0, 8.0, 13.0], ddof=1) * 3.88 - 4.68

    result = seeds.mean(values.tolist())

    assert (result.mean, result.deviation) == (pytest.approx(-4.68), pytest.approx(3.88))
    assert (result.low, result.high) == pytest.approx((-4.68 - 4.07, -4.68 + 4.07), abs=0.005)


def test_an_interval_over_two_seeds_has_the_quantile_of_a_cauchy_distribution() -> None:
    result = seeds.difference([0.5, 0.75], [0.25, 0.25])

    half = math.tan(0.475 * math.pi) * 0.125  # Half the distance is the standard error.
    assert (result.low, result.high) == pytest.approx((0.375 - half, 0.375 + half))


def test_the_interval_covers_the_true_mean_in_95_percent_of_studies() -> None:
    rng = np.random.default_rng(0)
    studies = [seeds.mean(rng.normal(0.1, 0.02, 3).tolist()) for _ in range(500)]

    covered = np.mean([s.low is not None and s.low < 0.1 < (s.high or 0) for s in studies])

    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 500))


def test_one_seed_has_a_mean_and_no_interval() -> None:
    assert seeds.difference([0.5], [0.25]) == seeds.Mean(0.25, 1)


def test_equal_differences_have_no_interval() -> None:
    # But for rounding, both are 0.04.
    result = seeds.difference([0.83, 0.80], [0.79, 0.76])

    assert (result.deviation, result.low, result.p_value) == (0.0, None, None)
    assert result.mean == pytest.approx(0.04)


@pytest.mark.parametrize(("above", "below"), [([], []), ([0.5], [0.5, 0.6])])
def test_values_that_are_no_pairs_are_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match="are not pairs"):
        seeds.difference(above, below)
