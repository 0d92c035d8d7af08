"""Rank correlations agree with SciPy's, also in bootstrap samples."""

import numpy as np
import pytest
from scipy import stats

from remem_jax.statistics import correlation


@pytest.fixture
def points() -> tuple[list[float], list[float]]:
    """Twenty points with ties, and a correlation of about 0.6."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    return np.round(x, 1).tolist(), np.round(x + rng.normal(size=20), 1).tolist()


def test_one_block_has_spearmans_correlation(points: tuple[list[float], list[float]]) -> None:
    x, y = points

    result = correlation.within_blocks(x, y, ["one"] * 20, range(20))

    assert result.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (result.points, result.clusters, result.blocks) == (20, 20, 1)


def test_the_interval_is_that_of_a_bootstrap_of_points(
    points: tuple[list[float], list[float]],
) -> None:
    x, y = map(np.array, points)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(20, size=20) for _ in range(1000)]
    resampled = [stats.spearmanr(x[i], y[i]).statistic for i in drawn]

    result = correlation.within_blocks(*points, [0] * 20, range(20))

    expected = np.percentile(resampled, [2.5, 97.5])
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=0.06)


def test_clusters_are_drawn_whole(points: tuple[list[float], list[float]]) -> None:
    x, y = map(np.array, points)
    rng = np.random.default_rng(1)
    clusters = np.arange(20) // 3  # Seven of them; the last has two points.
    members = [np.flatnonzero(clusters == name) for name in range(7)]
    drawn = [np.concatenate([members[i] for i in rng.integers(7, size=7)]) for _ in range(1000)]
    resampled = [stats.spearmanr(x[i], y[i]).statistic for i in drawn]

    result = correlation.within_blocks(*points, [0] * 20, clusters.tolist())

    expected = np.percentile(resampled, [2.5, 97.5])
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=0.06)
    assert result.clusters == 7


def test_blocks_are_ranked_apart_and_averaged() -> None:
    # Both increase within each block; the second block lies below the first in y alone.
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [11.0, 12.0, 13.0, 1.0, 2.0, 4.0, 3.0]
    blocks = ["a"] * 3 + ["b"] * 4

    result = correlation.within_blocks(x, y, blocks, range(7))

    second = stats.spearmanr(x[3:], y[3:]).statistic
    assert result.value == pytest.approx((3 * 1.0 + 4 * second) / 7)
    assert result.blocks == 2


def test_blocks_that_are_constant_or_small_do_not_count() -> None:
    x, y = [1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 2.0], [3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 1.0, 2.0]
    blocks = ["a"] * 3 + ["constant"] * 3 + ["small"] * 2

    result = correlation.within_blocks(x, y, blocks, range(8))

    assert (result.value, result.points, result.blocks) == (pytest.approx(-1.0), 3, 1)


def _partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Returns the correlation of the residuals of ranks, by SciPy and least squares."""
    ranks = [stats.rankdata(values) for values in (x, y, given)]
    design = np.stack([np.ones(len(x)), ranks[2]], axis=1)
    residuals = [r - design @ np.linalg.lstsq(design, r)[0] for r in ranks[:2]]
    return float(stats.pearsonr(*residuals).statistic)


def test_a_partial_correlation_is_that_of_residuals_of_ranks(
    points: tuple[list[float], list[float]],
) -> None:
    x, y = map(np.array, points)
    rng = np.random.default_rng(2)
    given = np.round(x + y + rng.normal(size=20), 1)
    drawn = [rng.integers(20, size=20) for _ in range(1000)]
    resampled = [_partial(x[i], y[i], given[i]) for i in drawn]

    result = correlation.within_blocks(*points, [0] * 20, range(20), given=given.tolist())

    assert result.value == pytest.approx(_partial(x, y, given))
    # Given what both of them raise, they compete.
    assert result.value < stats.spearmanr(x, y).statistic
    expected = np.percentile(resampled, [2.5, 97.5])
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=0.06)


def test_partial_correlations_need_four_points_that_the_third_quantity_leaves_free() -> None:
    x, y = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0, 1.0, 3.0, 2.0]
    blocks = ["small"] * 3 + ["one"] * 4

    of_x = correlation.within_blocks(x, y, blocks, range(7), given=x)
    constant = correlation.within_blocks(x, y, blocks, range(7), given=[1.0] * 7)

    # Nothing of x is left.
    assert of_x == correlation.Correlation(None, None, None, 0, 0, 0)
    assert constant.value == pytest.approx(stats.spearmanr(x[3:], y[3:]).statistic)
    assert (constant.points, constant.blocks) == (4, 1)


def test_few_clusters_have_no_interval() -> None:
    x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    result = correlation.within_blocks(x, x, ["one"] * 6, [0, 0, 1, 1, 2, 3])

    assert (result.value, result.low, result.high) == (pytest.approx(1.0), None, None)


def test_nothing_to_rank_is_undefined() -> None:
    result = correlation.within_blocks([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0] * 3, range(3))

    assert result == correlation.Correlation(None, None, None, 0, 0, 0)


def test_the_same_points_give_the_same_interval(
    points: tuple[list[float], list[float]],
) -> None:
    first, second = (correlation.within_blocks(*points, [0] * 20, range(20)) for _ in range(2))

    assert first == second
