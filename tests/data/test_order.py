"""The order of examples: each occurs once per epoch, and resuming does not change it."""

import numpy as np
import pytest

from remem_jax.data.loaders import order
from remem_jax.random_streams import Stage

EXAMPLES = 10


def _rows(start: int, stop: int, seed: int = 0, stage: Stage = "teacher") -> np.ndarray:
    return order.train_rows(np.arange(start, stop), examples=EXAMPLES, seed=seed, stage=stage)


def test_every_epoch_holds_each_example_once() -> None:
    epochs = _rows(0, 100).reshape(-1, EXAMPLES)

    np.testing.assert_array_equal(np.sort(epochs), [range(EXAMPLES)] * 10)


@pytest.mark.parametrize("start", [1, 7, 10, 33])
def test_the_order_does_not_depend_on_the_first_step(start: int) -> None:
    np.testing.assert_array_equal(_rows(start, 50), _rows(0, 50)[start:])


def test_positions_may_be_requested_in_any_order(rng: np.random.Generator) -> None:
    positions = rng.permutation(70)

    actual = order.train_rows(positions, examples=EXAMPLES, seed=0, stage="teacher")

    np.testing.assert_array_equal(actual, _rows(0, 70)[positions])


def test_epochs_have_different_orders() -> None:
    assert not np.array_equal(_rows(0, 10), _rows(10, 20))


def test_seeds_give_different_orders() -> None:
    assert not np.array_equal(_rows(0, 10, seed=1), _rows(0, 10, seed=2))


def test_stages_have_different_orders() -> None:
    assert not np.array_equal(_rows(0, 10, stage="teacher"), _rows(0, 10, stage="student"))


def test_evaluation_reads_each_example_once_and_in_order() -> None:
    rows, counted = order.evaluation_rows(np.arange(12), examples=EXAMPLES)

    np.testing.assert_array_equal(rows[counted], range(EXAMPLES))
    np.testing.assert_array_equal(counted, [True] * 10 + [False] * 2)
    assert rows.max() < EXAMPLES
