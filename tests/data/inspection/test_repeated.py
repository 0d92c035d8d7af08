"""Test images that are also in train or validation."""

import pathlib

import numpy as np
import pytest

from remem_jax import data, paired
from remem_jax.data.inspection import repeated, thumbnails
from remem_jax.workflow import provenance
from tests.data.inspection import photographs

TILES = photographs.clear_tiles(64)[20:60]
STORAGES = {
    "resident": data.Storage("resident", 48, 1.0, "", 2),
    "streamed": data.Storage("streamed", 48, 1.0, "", 2),
}


def _write(root: pathlib.Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Different photographs: 12 of train, 4 of validation, 8 of test, in two classes."""
    root = tmp_path / "images"
    for i in range(24):
        split = ("train", "train", "train", "validation", "test", "test")[i % 6]
        name = f"{split}/{('cat', 'dog')[i // 12]}/{i:02}.jpg"
        _write(root, name, photographs.jpeg(TILES[i], 90))
    return root


def _load(root: pathlib.Path, storage: data.Storage, cache: pathlib.Path) -> data.Dataset:
    source = data.open_source("folder", path=str(root), data_dir="")
    return data.load(
        source,
        storage._replace(cache=str(cache)),
        data.Rules(validation=0.2, seed=0, near_duplicates=False),
        corrupt_limit=0,
    )


def _named(dataset: data.Dataset) -> dict[str, tuple[str, str, bool]]:
    """Returns split and name of the duplicate of each repeated test image, by its name."""
    found = dataset.repeated
    assert found is not None
    rows = zip(found.tests, found.splits, found.others, found.same_file, strict=True)
    return {
        pathlib.Path(dataset.splits["test"].name(int(test))).name: (
            split,
            pathlib.Path(dataset.splits[split].name(int(other))).name,
            bool(same),
        )
        for test, split, other, same in rows
    }


@pytest.mark.parametrize("storage", STORAGES)
def test_files_and_pictures_of_other_splits_are_found(
    storage: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = photographs.jpeg(TILES[30], 90)
    _write(folder, "train/cat/whole.jpg", whole)
    _write(folder, "train/cat/again.jpg", photographs.jpeg(TILES[30], 70))
    _write(folder, "test/cat/same.jpg", whole)
    _write(folder, "validation/dog/first.jpg", photographs.jpeg(TILES[31], 90))
    half = photographs.resized(photographs.reencoded(TILES[31], 80), 0.5)
    _write(folder, "test/dog/near.jpg", photographs.jpeg(half, 90))
    _write(folder, "test/dog/mirrored.jpg", photographs.jpeg(TILES[0][:, ::-1].copy(), 90))

    for _ in range(2):  # The second time from the cache.
        found = _named(_load(folder, STORAGES[storage], tmp_path / "cache"))

        assert found == {
            "same.jpg": ("train", "whole.jpg", True),
            "near.jpg": ("validation", "first.jpg", False),
        }


@pytest.mark.parametrize("storage", STORAGES)
def test_different_photographs_are_not_repeated(
    storage: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _write(folder, "test/cat/twice.jpg", (folder / "test/cat/04.jpg").read_bytes())

    assert _named(_load(folder, STORAGES[storage], tmp_path / "cache")) == {}


def test_images_held_out_of_train_are_named_as_validation(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "images"
    for i in range(20):
        name = f"{('cat', 'dog')[i // 10]}/{i:02}.jpg"
        _write(root, f"train/{name}", photographs.jpeg(TILES[i], 90))
        _write(root, f"test/{name}", photographs.jpeg(TILES[i], 60))

    dataset = _load(root, STORAGES["resident"], tmp_path / "cache")

    found = _named(dataset)
    assert {test: other for test, (_, other, _) in found.items()} == {
        f"{i:02}.jpg": f"{i:02}.jpg" for i in range(20)
    }
    assert [split for split, _, _ in found.values()].count("validation") == 4


def test_the_most_alike_is_named(rng: np.random.Generator) -> None:
    def contents(images: list[np.ndarray]) -> repeated.Contents:
        numbers = rng.integers(0, 2**63, len(images), dtype=np.uint64)
        shown = np.stack([thumbnails.of_pixels(image) for image in images])
        return repeated.Contents(numbers, shown, lambda i: images[i])

    tile = TILES[12]
    test = contents([TILES[30], tile])
    others = {
        "train": contents([TILES[1], photographs.reencoded(tile, 40)]),
        "validation": contents([TILES[2], photographs.reencoded(tile, 95), TILES[3]]),
    }

    found = repeated.find(test, others, threads=1)

    assert found.tests.tolist() == [1]
    assert found.splits == ("validation",)
    assert found.others.tolist() == [1]
    assert found.same_file.tolist() == [False]


def test_published_splits_are_not_searched(tmp_path: pathlib.Path) -> None:
    source = data.open_source("digits", path="", data_dir="")._replace(published=True)
    storage = STORAGES["resident"]._replace(cache=str(tmp_path))

    loaded = data.load(
        source, storage, data.Rules(validation=0.2, seed=0, near_duplicates=False), corrupt_limit=0
    )

    assert loaded.repeated is None


def test_a_run_records_which_images_are_repeated(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _write(folder, "train/cat/a.jpg", photographs.jpeg(TILES[33], 90))
    _write(folder, "test/dog/b.jpg", photographs.jpeg(TILES[33], 70))
    _write(folder, "validation/cat/c.jpg", photographs.jpeg(TILES[31], 90))
    _write(folder, "test/cat/d.jpg", photographs.jpeg(TILES[31], 90))
    dataset = _load(folder, STORAGES["resident"], tmp_path / "cache")

    record = provenance.repeated(dataset)

    assert record is not None
    test = dataset.splits["test"]
    packed = paired.unpack(record.pop("test"))
    names = [pathlib.Path(test.name(i)).name for i in np.flatnonzero(packed).tolist()]
    assert names == ["d.jpg", "b.jpg"]
    assert record == {
        "images": 2,
        "same_file": 1,
        "different_labels": 1,
        "examples": [
            [f"{folder}/test/cat/d.jpg", "validation", f"{folder}/validation/cat/c.jpg"],
            [f"{folder}/test/dog/b.jpg", "train", f"{folder}/train/cat/a.jpg"],
        ],
    }
