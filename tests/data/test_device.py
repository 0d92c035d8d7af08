"""Batches: every example once per epoch, and a run that resumes sees what it would have seen."""

import itertools

import jax
import numpy as np
import pytest

from remem_jax.data import device
from remem_jax.records import Batch

EXAMPLES = 10


@pytest.fixture
def split(rng: np.random.Generator) -> device.Split:
    """Ten images; the label of each is its number."""
    images = rng.integers(0, 256, (EXAMPLES, 2, 3, 3), dtype=np.uint8)
    return device.put(device.Split(images, np.arange(EXAMPLES, dtype=np.int32)))


def _batches(
    split: device.Split, *, count: int, batch_size: int, seed: int = 0, first_step: int = 0
) -> list[Batch]:
    batches = device.train_batches(split, batch_size=batch_size, seed=seed, first_step=first_step)
    return list(itertools.islice(batches, count))


def _labels(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.label for batch in batches])


def test_put_keeps_pixels_as_uint8_on_the_device(split: device.Split) -> None:
    assert isinstance(split.image, jax.Array)
    assert split.image.dtype == np.uint8


@pytest.mark.parametrize("batch_size", [4, 5, 25])
def test_every_epoch_holds_each_example_once(split: device.Split, batch_size: int) -> None:
    batches = _batches(split, count=100 // batch_size, batch_size=batch_size)

    epochs = _labels(batches).reshape(-1, EXAMPLES)
    np.testing.assert_array_equal(np.sort(epochs), [range(EXAMPLES)] * len(epochs))


@pytest.mark.parametrize("first_step", [1, 2, 3, 7])
def test_batches_from_a_step_on_are_those_of_a_run_from_the_start(
    split: device.Split, first_step: int
) -> None:
    whole = _batches(split, count=first_step + 4, batch_size=4)

    resumed = _batches(split, count=4, batch_size=4, first_step=first_step)

    for expected, actual in zip(whole[first_step:], resumed, strict=True):
        np.testing.assert_array_equal(actual.label, expected.label)
        np.testing.assert_array_equal(actual.image, expected.image)


def test_images_keep_their_labels(split: device.Split) -> None:
    (batch,) = _batches(split, count=1, batch_size=EXAMPLES)

    np.testing.assert_array_equal(batch.image, np.asarray(split.image)[batch.label])


def test_two_epochs_have_two_orders(split: device.Split) -> None:
    first, second = _batches(split, count=2, batch_size=EXAMPLES)

    assert not np.array_equal(first.label, second.label)


def test_examples_of_train_are_shuffled(split: device.Split) -> None:
    (batch,) = _batches(split, count=1, batch_size=EXAMPLES)

    assert not np.array_equal(batch.label, range(EXAMPLES))


def test_two_seeds_have_two_orders(split: device.Split) -> None:
    one = _batches(split, count=1, batch_size=EXAMPLES, seed=1)

    two = _batches(split, count=1, batch_size=EXAMPLES, seed=2)

    assert not np.array_equal(_labels(one), _labels(two))


def test_one_seed_has_one_order(split: device.Split) -> None:
    one, two = (_batches(split, count=5, batch_size=4, seed=3) for _ in range(2))

    np.testing.assert_array_equal(_labels(one), _labels(two))


def test_no_example_of_train_is_masked(split: device.Split) -> None:
    for batch in _batches(split, count=5, batch_size=4):
        assert batch.mask.all()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 32])
def test_evaluation_counts_each_example_once_and_in_order(
    split: device.Split, batch_size: int
) -> None:
    batches = list(device.evaluation_batches(split, batch_size=batch_size))

    counted = np.concatenate([np.asarray(batch.label)[batch.mask] for batch in batches])
    np.testing.assert_array_equal(counted, range(EXAMPLES))


def test_last_batch_of_evaluation_masks_what_fills_it_up(split: device.Split) -> None:
    *_, last = device.evaluation_batches(split, batch_size=4)

    np.testing.assert_array_equal(last.mask, [True, True, False, False])


def test_all_batches_of_evaluation_have_one_shape(split: device.Split) -> None:
    batches = list(device.evaluation_batches(split, batch_size=4))

    assert {batch.image.shape for batch in batches} == {(4, 2, 3, 3)}
