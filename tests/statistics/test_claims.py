"""Verdicts on claims follow from the interval of the difference."""

import pytest
from scipy import stats

from remem_jax.statistics import claims, power
from remem_jax.statistics.seeds import Mean


@pytest.mark.parametrize(
    ("low", "high", "answer", "is_small"),
    [
        (0.01, 0.03, "holds", False),
        (0.001, 0.004, "holds", True),
        (-0.03, -0.01, "opposite", False),
        (-0.004, -0.001, "opposite", True),
        (-0.004, 0.004, "equivalent", True),
        (-0.004, 0.006, "undecided", False),
        (-0.005, 0.004, "undecided", False),  # The limit itself is not within the margin.
        (-0.02, 0.03, "undecided", False),
    ],
)
def test_the_interval_decides(low: float, high: float, answer: str, is_small: bool) -> None:
    difference = Mean((low + high) / 2, 3, 0.01, low, high, 0.5)

    verdict = claims.verdict(difference, 0.005)

    assert (verdict.answer, verdict.is_small) == (answer, is_small)


def test_equivalence_is_that_of_two_one_sided_tests() -> None:
    # Both tests, at half of 5 %, reject a difference of the margin or more.
    mean, deviation, n, margin = 0.001, 0.004, 10, 0.005
    error = deviation / n**0.5
    half = stats.t.ppf(0.975, n - 1) * error
    p_values = [stats.t.sf((margin - side * mean) / error, n - 1) for side in (1, -1)]

    verdict = claims.verdict(Mean(mean, n, deviation, mean - half, mean + half, 0.5), margin)

    assert (verdict.answer == "equivalent") == (max(p_values) < 0.025)


def test_an_undecided_claim_has_the_number_of_seeds_that_could_decide() -> None:
    verdict = claims.verdict(Mean(0.005, 3, 0.01, -0.02, 0.03, 0.5), 0.0)

    assert verdict.seeds_needed == power.seeds_needed(0.005, 0.01) == 34


@pytest.mark.parametrize("difference", [Mean(0.1, 1), Mean(0.1, 3, 0.0)])
def test_without_an_interval_nothing_is_decided(difference: Mean) -> None:
    assert claims.verdict(difference, 0.5) == claims.Verdict("undecided")
