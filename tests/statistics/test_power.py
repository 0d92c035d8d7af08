"""Numbers of seeds agree with published tables and with simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from remem_jax.statistics import power


# G*Power 3 (Faul et al. 2007): two dependent means, two-sided, level 0.05, power 0.8, by dz.
@pytest.mark.parametrize(("size", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_number_of_pairs_is_that_of_gpower(size: float, pairs: int) -> None:
    assert power.seeds_needed(3 * size, 3.0) == pairs
    assert power.seeds_needed(-3 * size, 3.0) == pairs


@pytest.mark.parametrize(("size", "n"), [(0.5, 8), (2.0, 3), (8.0, 2)])
def test_the_power_is_the_share_of_simulated_studies_that_find_the_difference(
    size: float, n: int
) -> None:
    gaps = np.random.default_rng(0).normal(size, 1.0, (20_000, n))

    found = np.mean(stats.ttest_1samp(gaps, 0.0, axis=1).pvalue < 0.05)

    assert power.power(size, 1.0, n) == pytest.approx(
        found, abs=4 * math.sqrt(found * (1 - found) / 20_000)
    )


def test_without_a_difference_the_power_is_the_level() -> None:
    assert power.power(0.0, 1.0, 5) == pytest.approx(0.05)


def test_at_most_a_thousand_seeds_are_named() -> None:
    assert power.seeds_needed(1e-4, 1.0) is None
    assert power.seeds_needed(100.0, 1.0) == 2
