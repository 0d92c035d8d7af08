"""Batches of train and validation together."""

import itertools
import pathlib
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from remem_jax import data
from remem_jax.data import sources
from remem_jax.data.custom import folders
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.records import DataLoader

BATCH = 5


def _save(path: pathlib.Path, rng: np.random.Generator, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """Ten images of two classes in train, four in test."""
    for split, images in (("train", 10), ("test", 4)):
        for i in range(images):
            _save(tmp_path / "mine" / split / f"class {i % 2}" / f"{i}.png", rng)
    return tmp_path


def _load(root: pathlib.Path, kind: str, *, stored: int = 8, **changes: Any) -> data.Dataset:
    source = folders.folder(str(root / "mine"))._replace(**changes)
    return data.load(
        source,
        data.Storage(kind, stored, 1.0, str(root / "cache"), 1),
        data.Rules(validation=0.2, seed=0, near_duplicates=False),
        corrupt_limit=0,
        refit=True,
    )


def _loader(dataset: data.Dataset, **changes: Any) -> DataLoader:
    options: dict[str, Any] = {"crop_area": (1.0, 1.0), "balance": 0.0, "seed": 0}
    evaluated = Preprocessing(8, crop=changes.pop("crop", 0.0))
    return data.make_loader(
        dataset._replace(flip=False), evaluated, **options | changes, threads=1, workers=0
    )


def _epochs(loader: DataLoader, batches: int) -> list[tuple[bytes, int]]:
    """Returns pixels and label of each image of some batches of a loader's students."""
    taken = itertools.islice(loader.distillation(BATCH, 0, stage="student"), batches)
    transform = jax.jit(loader.train_transform)
    return [
        (image.tobytes(), int(label))
        for batch in taken
        for image, label in zip(
            np.asarray(transform(jax.random.key(0), batch.image)),
            np.asarray(batch.label),
            strict=True,
        )
    ]


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_every_image_of_train_and_validation_is_in_an_epoch(root: pathlib.Path, kind: str) -> None:
    loader = _loader(_load(root, kind))
    assert loader.refit is not None

    seen = Counter(_epochs(loader.refit, 4))

    assert set(seen.values()) == {2}  # Two epochs of ten images.
    assert Counter(label for _, label in seen) == {0: 5, 1: 5}
    assert len(set(_epochs(loader, 4))) == 8  # The run itself has eight.


def test_both_inputs_refit_on_the_same_batches(root: pathlib.Path) -> None:
    first, second = (_loader(_load(root, kind)).refit for kind in ("resident", "streamed"))
    assert first is not None
    assert second is not None

    assert _epochs(first, 3) == _epochs(second, 3)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_a_validation_split_of_the_data_set_is_trained_on_too(
    root: pathlib.Path, rng: np.random.Generator, kind: str
) -> None:
    for i in range(5):  # Of another size than the training images.
        _save(root / "mine" / "validation" / f"class {i % 2}" / f"{i}.png", rng, side=6)
    loader = _loader(_load(root, kind))
    assert loader.refit is not None

    seen = Counter(_epochs(loader.refit, 3))

    assert len(seen) == 15
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_unlabelled_images_are_in_the_batches_too(
    root: pathlib.Path, rng: np.random.Generator, kind: str
) -> None:
    for i in range(5):
        _save(root / "more" / f"{i}.png", rng)
    source = data.with_unlabelled(
        folders.folder(str(root / "mine")), str(root / "more"), largest_share=0.75
    )
    loader = _loader(_load(root, kind, unlabelled=source.unlabelled))
    assert loader.refit is not None

    seen = _epochs(loader.refit, 6)

    assert len(set(seen)) == 15
    unlabelled = [label for _, label in seen if label == sources.NO_LABEL]
    assert len(unlabelled) == 30 * 5 // 13  # The share is that of the run, with eight labels.


def test_a_refit_reads_resident_images_if_evaluation_reads_files(root: pathlib.Path) -> None:
    loader = _loader(_load(root, "resident", stored=6), crop=0.875)
    assert loader.refit is not None

    assert loader.refit.kind == "resident"
    assert len(set(_epochs(loader.refit, 2))) == 10
    first, second = (
        [np.asarray(batch.image) for batch in each.evaluation("test", 4)]
        for each in (loader, loader.refit)
    )
    np.testing.assert_array_equal(first, second)


def test_the_data_set_of_a_refit_selects_nothing(root: pathlib.Path) -> None:
    dataset = _load(root, "streamed")

    refitted = dataset.for_refit()

    assert set(refitted.splits) == {"train", "test"}
    assert refitted.selection == ""
    assert refitted.fingerprint != dataset.fingerprint
    names = {refitted.splits["train"].name(i) for i in range(10)}
    assert names == {str(path) for path in (root / "mine" / "train").glob("*/*.png")}
