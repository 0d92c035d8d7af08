"""Sketches estimate the distance between arrays."""

import numpy as np
import pytest

from tools.gpu import sketch


@pytest.mark.parametrize("size", [1, 63, 64, 5000])
def test_the_estimate_is_close_to_the_distance(rng: np.random.Generator, size: int) -> None:
    expected = rng.normal(size=(200, size))
    actual = expected + 1e-3 * rng.normal(size=expected.shape)
    named = [{f"{i}": row for i, row in enumerate(rows)} for rows in (actual, expected)]
    distances = np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)

    errors = sketch.errors(sketch.of(named[0]), sketch.of(named[1]))

    ratios = np.asarray([errors[f"{i}"] for i in range(200)]) / distances
    # The square is unbiased; the standard error of an estimate is sqrt(2 / 64) / 2.
    assert np.mean(ratios**2) == pytest.approx(1.0, abs=0.06)
    assert np.std(ratios) < 0.12


def test_the_total_error_treats_all_arrays_as_one(rng: np.random.Generator) -> None:
    expected = {"a": rng.normal(size=4000), "b": 100 * rng.normal(size=4000)}
    actual = {"a": expected["a"] * 2, "b": expected["b"]}
    exact = np.linalg.norm(expected["a"]) / np.hypot(
        np.linalg.norm(expected["a"]), np.linalg.norm(expected["b"])
    )

    error = sketch.total_error(sketch.of(actual), sketch.of(expected))

    assert error == pytest.approx(exact, rel=0.4)


def test_the_error_of_an_array_of_rounding_errors_is_relative_to_all_arrays() -> None:
    expected = {"a": np.full(100, 1.0), "b": np.full(100, 1e-9)}  # The norms are 10 and 1e-8.
    actual = {"a": expected["a"], "b": np.full(100, 2e-9)}

    errors = sketch.errors(sketch.of(actual), sketch.of(expected))

    assert errors["b"] == pytest.approx(1e-8 / 1e-2, rel=0.4)


def test_arrays_on_one_side_only_are_named() -> None:
    first, second = sketch.of({"a": np.ones(3)}), sketch.of({"b": np.ones(3)})
    with pytest.raises(ValueError, match="on one side only: a, b"):
        sketch.errors(first, second)
