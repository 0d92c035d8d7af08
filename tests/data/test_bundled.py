"""The bundled part of EuroSAT has the pixels and labels of the files that it was made from."""

import importlib
import pathlib
from typing import Any

import numpy as np
import pytest

from remem_jax import data
from remem_jax.data import bundled, registry, sources

COUNTS = {"train": 100, "test": 50}  # Images of each class.


@pytest.fixture(scope="module")
def part() -> sources.Source:
    """The bundled part of EuroSAT."""
    return data.open_source(bundled.EUROSAT_PART, path="", data_dir="")


def _images(split: sources.Split) -> np.ndarray:
    return np.stack([np.asarray(split.read(i).image) for i in range(split.examples)])


@pytest.mark.parametrize("name", COUNTS)
def test_the_images_are_the_first_of_each_class_to_the_last_bit(
    name: str, part: sources.Source, shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(shared / "data"))
    sheets: Any = importlib.import_module("load_sheets")
    images, labels, classes = sheets.load(shared / f"data/eurosat/{name}.zip")
    first = np.concatenate([np.flatnonzero(labels == k)[: COUNTS[name]] for k in range(10)])
    split = part.splits[name]

    np.testing.assert_array_equal(_images(split), images[first])
    np.testing.assert_array_equal(np.asarray(split.labels), labels[first])
    assert list(part.classes) == classes


@pytest.mark.parametrize("name", COUNTS)
def test_all_classes_have_the_same_number_of_images(name: str, part: sources.Source) -> None:
    split = part.splits[name]

    counts = np.bincount(np.asarray(split.labels))

    assert counts.tolist() == [COUNTS[name]] * len(part.classes)
    assert _images(split).shape[1:] == (64, 64, 3)


def test_no_image_is_in_both_splits(part: sources.Source) -> None:
    train, test = ({image.tobytes() for image in _images(part.splits[name])} for name in COUNTS)

    assert not train & test
    assert len(train) == part.splits["train"].examples


def test_it_is_not_the_official_data_set(part: sources.Source) -> None:
    assert part.official is None
    assert bundled.EUROSAT_PART not in registry.RECORDS
    assert "part" in part.title
