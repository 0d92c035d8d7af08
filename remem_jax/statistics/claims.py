"""Decides what a difference over seeds says of a claim: it holds, it does not, or nothing yet.

A claim states that one row is better than another. The 95 % interval of the paired difference
decides. One that lies within a margin around 0 shows practical equivalence: the confidence interval
form of two one-sided tests, here with a 95 % interval, which is stricter than their 90 %.

Source: Schuirmann 1987, https://doi.org/10.1007/BF01068419.
"""

from typing import Literal, NamedTuple

from remem_jax.statistics import power
from remem_jax.statistics.seeds import Mean

Answer = Literal["holds", "opposite", "equivalent", "undecided"]


class Verdict(NamedTuple):
    """What the seeds say of a claim.

    Attributes:
        answer: "holds" if the interval lies above 0; "opposite" if it lies below 0; "equivalent" if
            it contains 0 and lies within the margin; else "undecided".
        is_small: Whether the interval lies within the margin, whatever the answer.
        seeds_needed: If undecided, the number of seeds with which the test would find a difference
            like the observed one with a probability of 0.8; None without an interval, or if
            `power.MOST_SEEDS` do not suffice.
    """

    answer: Answer
    is_small: bool = False
    seeds_needed: int | None = None


def verdict(difference: Mean, margin: float) -> Verdict:
    """Decides on a claim.

    Args:
        difference: The row's accuracy minus the baseline's, over seeds.
        margin: Differences of less than this count as none; at least 0, in the same unit.
    """
    low, high, deviation = difference.low, difference.high, difference.deviation
    if low is None or high is None or not deviation:
        return Verdict("undecided")
    is_small = -margin < low and high < margin
    if low > 0:
        return Verdict("holds", is_small)
    if high < 0:
        return Verdict("opposite", is_small)
    if is_small:
        return Verdict("equivalent", is_small)
    needed = power.seeds_needed(difference.mean, deviation)
    return Verdict("undecided", seeds_needed=needed)
