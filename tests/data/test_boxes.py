"""Random crop boxes: their distribution, and the agreement of NumPy and JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from remem_jax.data.images import boxes


def test_numpy_and_jax_make_the_same_boxes_from_the_same_draws(rng: np.random.Generator) -> None:
    draws = rng.random((4, 100))
    settings = {"height": 375, "width": 500, "area": (0.05, 1.0)}

    host = boxes.random_boxes(draws, **settings)
    device = jax.jit(lambda d: boxes.random_boxes(d, **settings))(jnp.asarray(draws, jnp.float32))

    np.testing.assert_allclose(np.stack(device), np.stack(host), rtol=1e-5, atol=1e-3)


def test_a_box_is_the_same_alone_and_in_a_batch(rng: np.random.Generator) -> None:
    draws = rng.random((4, 3))
    settings = {"height": 30, "width": 40, "area": (0.05, 1.0)}

    rows = [boxes.random_boxes(draws[:, i], **settings) for i in range(3)]

    np.testing.assert_allclose(np.transpose(rows), np.stack(boxes.random_boxes(draws, **settings)))


class Drawn(NamedTuple):
    """Random boxes."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray


def _drawn(rng: np.random.Generator, area: tuple[float, float]) -> Drawn:
    return Drawn(*boxes.random_boxes(rng.random((4, 1000)), height=30, width=40, area=area))


@pytest.fixture
def wide_boxes(rng: np.random.Generator) -> Drawn:
    """Boxes that cover 5 to 100 % of a 30 x 40 image; some are clipped to it."""
    return _drawn(rng, (0.05, 1.0))


@pytest.fixture
def small_boxes(rng: np.random.Generator) -> Drawn:
    """Boxes that cover 10 to 30 % of a 30 x 40 image; none is clipped."""
    return _drawn(rng, (0.1, 0.3))


def test_random_boxes_lie_inside_the_image(wide_boxes: Drawn) -> None:
    top, left, height, width = wide_boxes

    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 30 + 1e-9).all()
    assert (left + width <= 40 + 1e-9).all()


def _is_clipped(drawn: Drawn) -> np.ndarray:
    return (drawn.height == 30) | (drawn.width == 40)


def test_areas_of_random_boxes_are_within_the_bounds_unless_clipped(
    wide_boxes: Drawn,
) -> None:
    coverage = wide_boxes.height * wide_boxes.width / (30 * 40)
    clipped = _is_clipped(wide_boxes)

    assert (coverage <= 1 + 1e-6).all()
    assert (coverage[~clipped] >= 0.05 - 1e-6).all()
    assert 0 < clipped.sum() < 500


def test_aspect_ratios_of_random_boxes_are_within_3_4_and_4_3_unless_clipped(
    wide_boxes: Drawn,
) -> None:
    ratio = (wide_boxes.width / wide_boxes.height)[~_is_clipped(wide_boxes)]

    assert (ratio >= 3 / 4 - 1e-9).all()
    assert (ratio <= 4 / 3 + 1e-9).all()


def test_areas_of_random_boxes_are_uniform(small_boxes: Drawn) -> None:
    coverage = small_boxes.height * small_boxes.width / (30 * 40)

    assert stats.kstest(coverage, stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3


def test_aspect_ratios_of_random_boxes_are_log_uniform(small_boxes: Drawn) -> None:
    ratio = small_boxes.width / small_boxes.height

    assert stats.kstest(ratio, stats.loguniform(3 / 4, 4 / 3).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("edge", "side", "pixels"), [("top", "height", 30), ("left", "width", 40)])
def test_positions_of_random_boxes_are_uniform(
    small_boxes: Drawn, edge: str, side: str, pixels: int
) -> None:
    position = getattr(small_boxes, edge) / (pixels - getattr(small_boxes, side))

    assert stats.kstest(position, "uniform").pvalue > 1e-3
