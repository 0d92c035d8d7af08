"""What results say of the data, and the list of all files."""

import csv
import pathlib

import numpy as np
import pytest

from remem_jax import data
from remem_jax.data import registry, sources
from remem_jax.data.images import decoding
from remem_jax.workflow import provenance
from remem_jax.workflow.remem import file_list

CLASSES = ("=cmd()", "cat, \udcff", "dog")  # The last one has no image of test.
SHOWN = ("'=cmd()", "cat, \\udcff", "dog")  # No formula, and what UTF-8 can encode.
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
    """Nine images to train on, one of which is broken, and three of test."""
    splits = {name: _split(name) for name in LABELS}
    return data.load(
        sources.Source("Mine", splits, CLASSES, registry.TOP1, flip=True),
        data.Storage("streamed", stored_size=8, resident_gib=1.0, cache="", threads=1),
        validation=0.3,
        seed=0,
        corrupt_limit=1,
    )


@pytest.fixture
def listed(dataset: data.Dataset, tmp_path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of the list, as the csv module reads them."""
    said = {"test": np.array([2, 1, 0]), "validation": np.array([0, 1, 2])}
    file_list.write(tmp_path / "split.csv", dataset, {"scratch": said, "remem": {}})
    with (tmp_path / "split.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_listed_once_with_its_split_and_label(
    dataset: data.Dataset, listed: list[dict[str, str]]
) -> None:
    names = [f"{split}: {i}" for split, labels in LABELS.items() for i in range(len(labels))]

    assert sorted(row["file"] for row in listed) == sorted(names)
    held = {f"train: {i}" for i in dataset.splits["validation"].rows}
    for row in listed:
        of, _, i = row["file"].partition(": ")
        assert row["label"] == SHOWN[LABELS[of][int(i)]]
        assert row["split"] == ("validation" if row["file"] in held else of)


def test_predictions_stand_beside_the_images_they_are_of(listed: list[dict[str, str]]) -> None:
    said = {row["file"]: row["predicted by scratch"] for row in listed if row["split"] == "test"}

    assert list(said.values()) == ["dog", "cat, \\udcff", "'=cmd()"]
    assert list(said) == ["test: 0", "test: 1", "test: 2"]


def test_what_was_not_predicted_is_empty(listed: list[dict[str, str]]) -> None:
    assert {row["predicted by scratch"] for row in listed if row["split"] == "train"} == {""}
    assert {row["predicted by remem"] for row in listed} == {""}


def test_a_skipped_file_is_listed_with_its_reason(listed: list[dict[str, str]]) -> None:
    assert {row["file"]: row["skipped"] for row in listed if row["skipped"]} == {
        f"train: {BROKEN}": "cut off: no end"
    }


def test_a_class_without_images_is_named_by_split(dataset: data.Dataset) -> None:
    assert provenance.absent_classes(dataset) == {"train": [], "validation": [], "test": ["dog"]}


def test_sizes_are_those_of_the_files(dataset: data.Dataset) -> None:
    heights = [4 + i for labels in LABELS.values() for i in range(len(labels))]
    heights.remove(4 + BROKEN)  # Of train; it cannot be read.

    found = provenance.sizes(dataset.shapes)

    assert found == {
        "height": [4, int(np.median(heights)), 12],
        "width": [8, 8, 8],
        "different": len(set(heights)),
    }


def test_sizes_that_are_not_known_are_not_guessed() -> None:
    assert provenance.sizes(None) is None
