"""The description of the data in the results, and the list of all files."""

import csv
import pathlib

import numpy as np
import pytest

from remem_jax import data
from remem_jax.data import registry, sources
from remem_jax.data.images import decoding
from remem_jax.workflow import provenance
from remem_jax.workflow.remem import file_list

CLASSES = ("=cmd()", "cat, \udcff", "dog")  # The last class has no test image.
SHOWN = ("'=cmd()", "cat, \\udcff", "dog")  # Without formulas, and encodable in UTF-8.
LABELS = {"train": [0, 1, 2, 0, 1, 2, 0, 1, 2], "test": [0, 1, 1]}
BROKEN = 4


def _split(name: str) -> sources.Split:
    labels = np.array(LABELS[name], np.int32)

    def read(i: int) -> sources.Example:
        if (name, i) == ("train", BROKEN):
            raise decoding.CorruptImageError("cut off: no end")
        return sources.Example(np.zeros((4 + i, 8, 3), np.uint8), int(labels[i]))

    return sources.Split(read, f"{name}: {{}}".format, len(labels), labels, key="")


@pytest.fixture
def dataset() -> data.Dataset:
    """Nine training images, one of which is broken, and three test images."""
    splits = {name: _split(name) for name in LABELS}
    return data.load(
        sources.Source("Mine", splits, CLASSES, registry.TOP1, flip=True),
        data.Storage("streamed", stored_size=8, resident_gib=1.0, cache="", threads=1),
        data.Rules(validation=0.3, seed=0, near_duplicates=False),
        corrupt_limit=1,
    )


@pytest.fixture
def listed(dataset: data.Dataset, tmp_path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of the list, as the csv module reads them."""
    predictions = {"test": np.array([2, 1, 0]), "validation": np.array([0, 1, 2])}
    file_list.write(tmp_path / "split.csv", dataset, {"scratch": predictions, "remem": {}})
    with (tmp_path / "split.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_listed_once_with_its_split_and_label(
    dataset: data.Dataset, listed: list[dict[str, str]]
) -> None:
    names = [f"{split}: {i}" for split, labels in LABELS.items() for i in range(len(labels))]

    assert sorted(row["file"] for row in listed) == sorted(names)
    held = {f"train: {i}" for i in dataset.splits["validation"].rows}
    for row in listed:
        split, _, i = row["file"].partition(": ")
        assert row["label"] == SHOWN[LABELS[split][int(i)]]
        assert row["split"] == ("validation" if row["file"] in held else split)


def test_predictions_are_listed_with_their_images(listed: list[dict[str, str]]) -> None:
    predictions = {
        row["file"]: row["predicted by scratch"] for row in listed if row["split"] == "test"
    }

    assert list(predictions.values()) == ["dog", "cat, \\udcff", "'=cmd()"]
    assert list(predictions) == ["test: 0", "test: 1", "test: 2"]


def test_images_without_a_prediction_have_an_empty_cell(listed: list[dict[str, str]]) -> None:
    assert {row["predicted by scratch"] for row in listed if row["split"] == "train"} == {""}
    assert {row["predicted by remem"] for row in listed} == {""}


def test_a_skipped_file_is_listed_with_its_reason(listed: list[dict[str, str]]) -> None:
    assert {row["file"]: row["skipped"] for row in listed if row["skipped"]} == {
        f"train: {BROKEN}": "cut off: no end"
    }


def test_a_class_without_images_is_named_by_split(dataset: data.Dataset) -> None:
    assert provenance.absent_classes(dataset) == {"train": [], "validation": [], "test": ["dog"]}


def test_the_sizes_summarise_the_files(dataset: data.Dataset) -> None:
    heights = [4 + i for labels in LABELS.values() for i in range(len(labels))]
    heights.remove(4 + BROKEN)  # A training image that cannot be read.

    sizes = provenance.sizes(dataset.shapes)

    assert sizes == {
        "height": [4, int(np.median(heights)), 12],
        "width": [8, 8, 8],
        "different": len(set(heights)),
    }


def test_unknown_sizes_are_not_guessed() -> None:
    assert provenance.sizes(None) is None
