"""The digits of scikit-learn, and splits in memory."""

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets
from sklearn import model_selection

from remem_jax.data import sources


@pytest.fixture(scope="module")
def digits() -> sources.Source:
    """scikit-learn's digits."""
    return sources.digits()


def test_digits_are_ten_classes(digits: sources.Source) -> None:
    assert digits.classes == tuple("0123456789")


def test_digits_must_not_be_mirrored(digits: sources.Source) -> None:
    assert not digits.flip


def test_digits_need_no_cache(digits: sources.Source) -> None:
    assert {split.key for split in digits.splits.values()} == {""}


@pytest.mark.parametrize(("index", "name"), [(0, "train"), (1, "test")])
def test_digits_are_split_like_scikit_learn(digits: sources.Source, index: int, name: str) -> None:
    bunch: Any = sklearn_datasets.load_digits()
    images = model_selection.train_test_split(
        bunch.images, test_size=0.2, stratify=bunch.target, random_state=0
    )[index]
    split = digits.splits[name]

    actual = np.stack([np.asarray(split.read(i).image) for i in range(split.examples)])

    # Values are sixteenths; rounding to 8 bits loses up to half a grey level.
    expected = np.repeat(images[..., None], 3, axis=-1) * 255 / 16
    np.testing.assert_allclose(actual.astype(np.float64), expected, atol=0.5)


@pytest.mark.parametrize(("index", "name"), [(2, "train"), (3, "test")])
def test_digits_have_the_labels_of_scikit_learn(
    digits: sources.Source, index: int, name: str
) -> None:
    bunch: Any = sklearn_datasets.load_digits()
    labels = model_selection.train_test_split(
        bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0
    )[index]
    split = digits.splits[name]

    np.testing.assert_array_equal([split.read(i).label for i in range(split.examples)], labels)
    np.testing.assert_array_equal(np.asarray(split.labels), labels)


def test_a_split_in_memory_survives_pickling(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    split = sources.in_memory(images, np.asarray([2, 0, 1]), "image")

    read, name = pickle.loads(pickle.dumps((split.read, split.name)))

    np.testing.assert_array_equal([read(i).image for i in range(3)], images)
    assert [read(i).label for i in range(3)] == [2, 0, 1]
    assert name(1) == "image 1"
