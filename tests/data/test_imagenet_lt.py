"""ImageNet-LT read from a prepared ImageNet, checked against its lists of images."""

import os
import pathlib
import pickle
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets

from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.data.tfds import copies, imagenet_lt, prepared
from tests.data import tiny_tfds

COUNT = 12
# `tiny_tfds` names the images 000000, 000001, ... in the order of the labels below.
LABELS = np.arange(COUNT) * 90
LISTS = {"train": [7, 2, 11, 5], "test": [0, 3]}


class Place(NamedTuple):
    """A TFDS folder with a tiny ImageNet, and the lists of a tiny ImageNet-LT."""

    data_dir: str
    lists: dict[str, dict[str, int]]
    pixels: np.ndarray


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Place:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tfds")
    images = rng.integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    splits = {"train": (images, LABELS), "validation": (images, LABELS)}
    tiny_tfds.write(registry.IMAGENET, folder, splits)
    lists = {split: {f"{i:06d}": int(LABELS[i]) for i in chosen} for split, chosen in LISTS.items()}
    return Place(str(folder), lists, images)


@pytest.fixture
def place(written: Place, tmp_path: pathlib.Path) -> Place:
    """A copy of `written`, with the index."""
    shutil.copytree(pathlib.Path(written.data_dir, "imagenet2012"), tmp_path / "imagenet2012")
    place = written._replace(data_dir=str(tmp_path))
    _write(place, place.lists)
    return place


def _copy(place: Place) -> copies.Copy:
    copy = copies.find(registry.IMAGENET, place.data_dir)
    assert copy is not None
    return copy


def _write(place: Place, lists: dict[str, dict[str, int]]) -> None:
    imagenet_lt.write(_copy(place), place.data_dir, lists, range(COUNT))


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_match_the_lists(place: Place, split: str) -> None:
    subset = prepared.tfds("imagenet_lt", place.data_dir).splits[split]

    read = [subset.read(i) for i in range(subset.examples)]
    assert [example.image for example in read] == [
        tiny_tfds.png(place.pixels[i]) for i in LISTS[split]
    ]
    assert [example.label for example in read] == [LABELS[i] for i in LISTS[split]]
    assert subset.labels is not None
    assert subset.labels.tolist() == [LABELS[i] for i in LISTS[split]]


def test_classes_match_the_imagenet_lt_builder(place: Place, tmp_path: pathlib.Path) -> None:
    builder: Any = tensorflow_datasets.builder("imagenet_lt", data_dir=str(tmp_path / "none"))

    source = prepared.tfds("imagenet_lt", place.data_dir)

    assert list(source.classes) == builder.info.features["label"].names


def test_the_index_also_works_with_tfrecord(place: Place, tmp_path: pathlib.Path) -> None:
    """An index written for one format serves the other, as the order is the same."""
    folder = pathlib.Path(_copy(place).builder.data_dir)
    aside = folder.rename(tmp_path / "aside")
    tiny_tfds.as_tfrecord(aside, folder, shards=2)

    subset = prepared.tfds("imagenet_lt", place.data_dir).splits["train"]

    assert [subset.read(i).label for i in range(4)] == [LABELS[i] for i in LISTS["train"]]


def test_a_split_can_be_pickled(place: Place) -> None:
    split = prepared.tfds("imagenet_lt", place.data_dir).splits["test"]

    restored = pickle.loads(pickle.dumps(split))

    assert [restored.read(i) for i in range(2)] == [split.read(i) for i in range(2)]
    assert restored.name(1) == "imagenet_lt test 1"


def test_keys_change_with_the_lists(place: Place) -> None:
    before = prepared.tfds("imagenet_lt", place.data_dir).splits
    _write(place, place.lists | {"train": {"000001": 90}})

    after = prepared.tfds("imagenet_lt", place.data_dir).splits

    assert before["train"].key != after["train"].key
    assert before["test"].key == after["test"].key


def test_a_copy_prepared_by_tfds_takes_precedence(place: Place, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    examples = images, np.arange(5)
    splits = {"train": examples, "validation": examples, "test": examples}
    tiny_tfds.write("imagenet_lt:1.*.*", pathlib.Path(place.data_dir), splits)

    assert prepared.tfds("imagenet_lt", place.data_dir).splits["train"].examples == 5
    assert prepared.state("imagenet_lt", place.data_dir) == ("array_record", (5, 5), 0)


def test_the_state_reports_the_index(place: Place) -> None:
    assert prepared.state("imagenet_lt", place.data_dir) == ("index", (4, 2), 0)


def test_a_label_that_contradicts_the_list_is_refused(place: Place) -> None:
    with pytest.raises(SettingError, match=r"000002 has label 180 in .* and 181 in the lists"):
        _write(place, place.lists | {"test": {"000002": 181}})


def test_an_image_that_imagenet_lacks_is_refused(place: Place) -> None:
    imagenet_lt.path(place.data_dir).unlink()

    with pytest.raises(SettingError, match="lacks 1 of the 5 images of the lists, such as 000099"):
        _write(place, place.lists | {"test": {"000099": 0}})
    assert prepared.state("imagenet_lt", place.data_dir) is None


def test_an_index_for_another_imagenet_is_refused(place: Place, rng: np.random.Generator) -> None:
    folder = pathlib.Path(place.data_dir, "imagenet2012")
    shutil.rmtree(folder)
    other = rng.integers(0, 256, (COUNT + 1, 4, 4, 3), dtype=np.uint8), np.arange(COUNT + 1)
    splits = {"train": other, "validation": other}
    tiny_tfds.write(registry.IMAGENET, folder.parent, splits)

    with pytest.raises(SettingError, match=r"made for ImageNet in version .* with 12 images"):
        prepared.tfds("imagenet_lt", place.data_dir)


def test_an_index_that_points_at_other_images_is_refused(place: Place) -> None:
    folder = pathlib.Path(place.data_dir, "imagenet2012")
    shutil.rmtree(folder)
    other = place.pixels, LABELS[::-1].copy()
    tiny_tfds.write(registry.IMAGENET, folder.parent, {"train": other, "validation": other})

    split = prepared.tfds("imagenet_lt", place.data_dir).splits["train"]

    with pytest.raises(SettingError, match="does not fit the images"):
        split.read(0)


def test_an_index_without_its_imagenet_is_refused(place: Place) -> None:
    shutil.rmtree(pathlib.Path(place.data_dir, "imagenet2012"))

    with pytest.raises(SettingError, match=r"imagenet2012:5\.\*\.\* is not prepared"):
        prepared.tfds("imagenet_lt", place.data_dir)


def test_a_damaged_index_is_refused(place: Place) -> None:
    path = imagenet_lt.path(place.data_dir)
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(SettingError, match=r"imagenet_lt\.npz cannot be read"):
        prepared.tfds("imagenet_lt", place.data_dir)


def test_lists_are_read_in_their_published_form(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ImageNet_LT_train.txt"
    file.write_text("train/n01440764/n01440764_190.JPEG 0\ntrain/n15075141/n15075141_54.JPEG 999\n")

    labels = imagenet_lt.read_list(file)

    assert labels == {"n01440764_190.JPEG": 0, "n15075141_54.JPEG": 999}


@pytest.mark.parametrize(
    "line", ["<!DOCTYPE html>", "train/n01440764/n01440764_190.JPEG", "a.JPEG x", "a.txt 1", ""]
)
def test_a_malformed_list_is_refused(tmp_path: pathlib.Path, line: str) -> None:
    file = tmp_path / "ImageNet_LT_train.txt"
    file.write_text(f"train/n01440764/n01440764_190.JPEG 0\n{line}\n")

    with pytest.raises(SettingError, match="line 2 is no line of a list"):
        imagenet_lt.read_list(file)
