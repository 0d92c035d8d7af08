"""The order of examples: each occurs once per epoch, and resuming does not change it.

Class-balanced orders have the frequencies that they should have, also in torch's sampler.
"""

import numpy as np
import pytest
from scipy import stats

from remem_jax.data.loaders import order
from remem_jax.random_streams import Stage
from tests.oracles import peers

EXAMPLES = 10
LABELS = np.zeros(EXAMPLES, np.int32)
COUNTS = (60, 30, 6, 0, 3)  # Images of each class; one class has none.
UNEVEN = np.repeat(np.arange(len(COUNTS)), COUNTS)[np.random.default_rng(0).permutation(99)]


def _rows(start: int, stop: int, seed: int = 0, stage: Stage = "teacher") -> np.ndarray:
    return order.TrainOrder(LABELS, 0.0, seed).rows(np.arange(start, stop), stage=stage)


def _balanced(start: int, stop: int, balance: float, stage: Stage = "teacher") -> np.ndarray:
    return order.TrainOrder(UNEVEN, balance, seed=0).rows(np.arange(start, stop), stage=stage)


def _shares(balance: float) -> np.ndarray:
    """Returns how often each class should be drawn: n ** (1 - balance), normalised."""
    counts = np.asarray(COUNTS, float)
    shares = np.where(counts > 0, np.maximum(counts, 1) ** (1 - balance), 0)
    return shares / shares.sum()


def test_every_epoch_holds_each_example_once() -> None:
    epochs = _rows(0, 100).reshape(-1, EXAMPLES)

    np.testing.assert_array_equal(np.sort(epochs), [range(EXAMPLES)] * 10)


@pytest.mark.parametrize("start", [1, 7, 10, 33])
def test_the_order_does_not_depend_on_the_first_step(start: int) -> None:
    np.testing.assert_array_equal(_rows(start, 50), _rows(0, 50)[start:])


def test_positions_may_be_requested_in_any_order(rng: np.random.Generator) -> None:
    positions = rng.permutation(70)

    actual = order.TrainOrder(LABELS, 0.0, seed=0).rows(positions, stage="teacher")

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


# Class-balanced orders.


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_every_epoch_has_the_expected_number_of_each_class(balance: float) -> None:
    epochs = UNEVEN[_balanced(0, 40 * 99, balance)].reshape(40, 99)

    counts = np.stack([np.bincount(epoch, minlength=len(COUNTS)) for epoch in epochs])

    assert (np.abs(counts - 99 * _shares(balance)) < 1).all()  # Rounded up or down.


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_images_of_a_class_are_drawn_equally_often(balance: float) -> None:
    drawn = np.bincount(_balanced(0, 200 * 99, balance), minlength=99)

    expected = (200 * 99 * _shares(balance) / np.maximum(COUNTS, 1))[UNEVEN]
    # Systematic sampling varies less than independent draws, for which this is the test.
    assert stats.chisquare(drawn, expected * drawn.sum() / expected.sum()).pvalue > 1e-3
    assert (np.abs(drawn - expected) < 6 * np.sqrt(expected)).all()


def test_frequencies_are_those_of_torchs_weighted_sampler() -> None:
    torch = peers.torch()
    weights = 1 / np.asarray(COUNTS, float)[UNEVEN]
    generator = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.WeightedRandomSampler(weights, 20_000, generator=generator)

    theirs = np.bincount(UNEVEN[list(sampler)], minlength=len(COUNTS))
    ours = np.bincount(UNEVEN[_balanced(0, 20_000, 1.0)], minlength=len(COUNTS))

    present = np.asarray(COUNTS) > 0
    assert stats.chi2_contingency(np.stack([ours, theirs])[:, present]).pvalue > 1e-3


def test_no_image_of_a_large_class_occurs_twice_in_an_epoch() -> None:
    rows = _balanced(0, 99, 1.0)

    assert np.bincount(rows, minlength=99)[UNEVEN == 0].max() == 1


def test_a_balanced_order_with_equal_counts_holds_each_image_once() -> None:
    labels = np.arange(12) % 3

    rows = order.TrainOrder(labels, 1.0, seed=0).rows(np.arange(12), stage="teacher")

    np.testing.assert_array_equal(np.sort(rows), range(12))


@pytest.mark.parametrize("start", [1, 98, 99, 150])
def test_a_balanced_order_does_not_depend_on_the_first_step(start: int) -> None:
    np.testing.assert_array_equal(_balanced(start, 300, 1.0), _balanced(0, 300, 1.0)[start:])


def test_classes_are_spread_over_a_balanced_epoch() -> None:
    labels = UNEVEN[_balanced(0, 100 * 99, 1.0)].reshape(100, 99)

    halves = [np.bincount(half.ravel(), minlength=5) for half in np.split(labels[:, :98], 2, 1)]

    present = np.asarray(COUNTS) > 0
    assert stats.chi2_contingency(np.stack(halves)[:, present]).pvalue > 1e-3


def test_decoders_see_the_images_as_they_are() -> None:
    epoch = _balanced(0, 99, 1.0, stage="decoder")

    np.testing.assert_array_equal(np.sort(epoch), range(99))
