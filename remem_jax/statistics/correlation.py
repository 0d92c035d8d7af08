"""Rank correlation within blocks, with a bootstrap interval that resamples whole clusters.

Sources: Spearman 1904, https://doi.org/10.2307/1412159; Efron & Tibshirani 1993, An Introduction to
the Bootstrap, chapter 13 (percentile intervals). The bootstrap is SciPy's.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from remem_jax.statistics.seeds import CONFIDENCE

LEAST_CLUSTERS = 5  # With fewer, resampling shows too little of the variation.
_LEAST_IN_BLOCK = 3  # Two ranks always correlate perfectly; given other ranks, so do three.
_RESAMPLES = 4999
_BATCH = 500  # Resamples at once, to limit memory.
_ROUNDING = 1e-9


class Correlation(NamedTuple):
    """A rank correlation.

    Attributes:
        value: Spearman's correlation within each block, or the partial one, averaged over blocks
            with the number of their points as weights; None if it is undefined in all of them.
        low: Lower limit of its 95 % interval; None with fewer than `LEAST_CLUSTERS` clusters.
        high: Upper limit.
        points: Number of points in blocks that count.
        clusters: Number of their clusters.
        blocks: Number of blocks that count.
    """

    value: float | None
    low: float | None
    high: float | None
    points: int
    clusters: int
    blocks: int


def within_blocks(
    x: Sequence[float],
    y: Sequence[float],
    blocks: Sequence[Hashable],
    clusters: Sequence[Hashable],
    *,
    given: Sequence[float] | None = None,
) -> Correlation:
    """Correlates the ranks of two quantities.

    Args:
        x: First quantity of each point, finite.
        y: Second quantity of each point, finite.
        blocks: Block of each point. Points are ranked only against others of their block. Blocks of
            fewer than three points, or in which one quantity is constant, do not count.
        clusters: Cluster of each point: points that depend on each other, also in other blocks. The
            bootstrap draws clusters with replacement, with all their points.
        given: A third quantity of each point, finite, or None. With it, the correlation is partial:
            that of the residuals of both ranks after linear regression on the ranks of the third.

    Returns:
        The correlation. The same points give the same interval: the bootstrap has a fixed seed.
    """
    number = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    parts = [
        _Block(
            _below(np.take(x, members)),
            _below(np.take(y, members)),
            None if given is None else _below(np.take(given, members)),
            np.array([number[clusters[i]] for i in members]),
        )
        for members in _members(blocks)
        if len(members) >= _LEAST_IN_BLOCK + (given is not None)
    ]
    once = np.ones((1, len(number)))
    counted = [part for part in parts if _sums([part], once)[1].item() > 0]
    points = [cluster for part in counted for cluster in part.cluster.tolist()]
    drawn_from = np.unique(np.asarray(points, int))
    sizes = len(points), len(drawn_from), len(counted)
    if not counted:
        return Correlation(None, None, None, *sizes)
    value = _average(counted, once).item()
    if len(drawn_from) < LEAST_CLUSTERS:
        return Correlation(value, None, None, *sizes)
    result = stats.bootstrap(
        (drawn_from,),
        lambda drawn, axis: _average(counted, _counts(np.moveaxis(drawn, axis, -1), len(number))),
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return Correlation(value, float(low), float(high), *sizes)


class _Block(NamedTuple):
    """The points of a block.

    Attributes:
        below_x: For each point, 1 for every point with a smaller x, 1/2 for one with the same.
        below_y: The same for y.
        below_given: The same for the third quantity; None without one.
        cluster: Number of each point's cluster.
    """

    below_x: Float[np.ndarray, "point point"]
    below_y: Float[np.ndarray, "point point"]
    below_given: Float[np.ndarray, "point point"] | None
    cluster: Int[np.ndarray, " point"]


def _members(blocks: Sequence[Hashable]) -> list[list[int]]:
    """Returns the indices of the points of each block."""
    members: dict[Hashable, list[int]] = {}
    for index, block in enumerate(blocks):
        members.setdefault(block, []).append(index)
    return list(members.values())


def _below(values: Float[np.ndarray, " point"]) -> Float[np.ndarray, "point point"]:
    return (values < values[:, None]) + (values == values[:, None]) / 2


def _counts(drawn: Int[np.ndarray, "*sample draw"], clusters: int) -> Float[np.ndarray, "..."]:
    """Returns how often each cluster was drawn, of shape (*sample, cluster)."""
    return (drawn[..., None] == np.arange(clusters)).sum(axis=-2, dtype=np.float64)


def _average(
    blocks: Sequence[_Block], times: Float[np.ndarray, "*sample cluster"]
) -> Float[np.ndarray, "*sample"]:
    """Returns the mean correlation of samples in which each cluster occurs so many times.

    If no block of a sample counts, its mean is 0.
    """
    total, points = _sums(blocks, times)
    return total / np.maximum(points, 1.0)


def _sums(
    blocks: Sequence[_Block], times: Float[np.ndarray, "*sample cluster"]
) -> tuple[Float[np.ndarray, "*sample"], Float[np.ndarray, "*sample"]]:
    """Returns the sum of the correlations of all points of samples, and the number of points.

    A block in which nothing varies in a sample does not count there.
    """
    total, points = np.zeros(times.shape[:-1]), np.zeros(times.shape[:-1])
    for block in blocks:
        weights = times[..., block.cluster]
        size = weights.sum(axis=-1)
        # Ranks but for a constant: a point that occurs k times stands for k points of equal rank.
        x, y = (_centred(weights @ below.T, weights) for below in (block.below_x, block.below_y))
        if block.below_given is not None:
            third = _centred(weights @ block.below_given.T, weights)
            x, y = (_residual(ranks, third, weights) for ranks in (x, y))
        spread = np.sqrt((weights * x**2).sum(axis=-1) * (weights * y**2).sum(axis=-1))
        counts = spread > _ROUNDING * size
        covariance = (weights * x * y).sum(axis=-1)
        total += np.where(counts, size * covariance / np.where(counts, spread, 1.0), 0.0)
        points += np.where(counts, size, 0.0)
    return total, points


def _centred(
    ranks: Float[np.ndarray, "*sample point"], weights: Float[np.ndarray, "*sample point"]
) -> Float[np.ndarray, "*sample point"]:
    size = np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
    return ranks - (weights * ranks).sum(axis=-1, keepdims=True) / size


def _residual(
    ranks: Float[np.ndarray, "*sample point"],
    given: Float[np.ndarray, "*sample point"],
    weights: Float[np.ndarray, "*sample point"],
) -> Float[np.ndarray, "*sample point"]:
    """Returns what a linear regression on other centred ranks leaves of centred ranks."""
    spread = (weights * given**2).sum(axis=-1, keepdims=True)
    varies = spread > _ROUNDING * np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
    covariance = (weights * ranks * given).sum(axis=-1, keepdims=True)
    return ranks - given * np.where(varies, covariance / np.where(varies, spread, 1.0), 0.0)
