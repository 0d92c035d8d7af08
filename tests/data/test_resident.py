"""Batches of resident images: each example once per epoch, and unchanged by resuming."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.data.loaders import resident
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, DataLoader

EXAMPLES = 10


@pytest.fixture
def split(rng: np.random.Generator) -> resident.Split:
    """Ten images; the label of each is its index."""
    images = rng.integers(0, 256, (EXAMPLES, 2, 3, 3), dtype=np.uint8)
    return resident.Split(images, np.arange(EXAMPLES, dtype=np.int32))


def _loader(split: resident.Split, seed: int = 0, sharding: Any = None) -> DataLoader:
    return resident.make_loader(
        {"train": split, "test": split},
        Preprocessing(4),
        crop_area=(0.5, 1.0),
        flip=True,
        balance=0.0,
        seed=seed,
        sharding=sharding,
    )


def _batches(
    loader: DataLoader,
    *,
    count: int,
    batch_size: int,
    first_step: int = 0,
    stage: Stage = "teacher",
) -> list[Batch]:
    return list(itertools.islice(loader.train(batch_size, first_step, stage=stage), count))


def _labels(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.label for batch in batches])


def test_pixels_stay_uint8(split: resident.Split) -> None:
    (batch,) = _batches(_loader(split), count=1, batch_size=4)

    assert batch.image.dtype == np.uint8


@pytest.mark.parametrize("batch_size", [4, 5, 25])
def test_every_epoch_holds_each_example_once(split: resident.Split, batch_size: int) -> None:
    batches = _batches(_loader(split), count=100 // batch_size, batch_size=batch_size)

    epochs = _labels(batches).reshape(-1, EXAMPLES)
    np.testing.assert_array_equal(np.sort(epochs), [range(EXAMPLES)] * len(epochs))


@pytest.mark.parametrize("first_step", [1, 2, 3, 7])
def test_resuming_at_a_step_gives_the_batches_of_an_uninterrupted_run(
    split: resident.Split, first_step: int
) -> None:
    whole = _batches(_loader(split), count=first_step + 4, batch_size=4)

    resumed = _batches(_loader(split), count=4, batch_size=4, first_step=first_step)

    for expected, actual in zip(whole[first_step:], resumed, strict=True):
        np.testing.assert_array_equal(actual.label, expected.label)
        np.testing.assert_array_equal(actual.image, expected.image)


def test_images_keep_their_labels(split: resident.Split) -> None:
    (batch,) = _batches(_loader(split), count=1, batch_size=EXAMPLES)

    np.testing.assert_array_equal(batch.image, split.image[np.asarray(batch.label)])


def test_seeds_give_different_orders(split: resident.Split) -> None:
    first, second = (_batches(_loader(split, i), count=1, batch_size=EXAMPLES) for i in (1, 2))

    assert not np.array_equal(_labels(first), _labels(second))


def test_teachers_and_students_have_different_orders(split: resident.Split) -> None:
    first, second = (
        _batches(_loader(split), count=1, batch_size=EXAMPLES, stage=stage)
        for stage in ("teacher", "student")
    )

    assert not np.array_equal(_labels(first), _labels(second))


def test_training_masks_no_example(split: resident.Split) -> None:
    for batch in _batches(_loader(split), count=5, batch_size=4):
        assert batch.mask.all()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 32])
def test_evaluation_counts_each_example_once_and_in_order(
    split: resident.Split, batch_size: int
) -> None:
    batches = list(_loader(split).evaluation("test", batch_size))

    counted = np.concatenate([np.asarray(batch.label)[batch.mask] for batch in batches])
    np.testing.assert_array_equal(counted, range(EXAMPLES))


def test_padding_of_the_last_evaluation_batch_is_masked(split: resident.Split) -> None:
    *_, last = _loader(split).evaluation("test", 4)

    np.testing.assert_array_equal(last.mask, [True, True, False, False])


def test_all_batches_of_evaluation_have_one_shape(split: resident.Split) -> None:
    batches = list(_loader(split).evaluation("test", 4))

    assert {batch.image.shape for batch in batches} == {(4, 2, 3, 3)}


def test_batches_may_be_sharded_over_devices(split: resident.Split) -> None:
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    sharded = _batches(_loader(split, sharding=sharding), count=3, batch_size=4)

    for first, second in zip(sharded, _batches(_loader(split), count=3, batch_size=4), strict=True):
        assert first.image.sharding.is_equivalent_to(sharding, 4)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
