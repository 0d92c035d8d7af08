"""Real images of four data sets, read through TFDS and compared with their source files."""

import collections
import hashlib
import importlib
import pathlib
from typing import Any

import numpy as np
import pytest

from remem_jax import data
from remem_jax.data import registry, sources
from remem_jax.data.images import decoding

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Data set -> the files with its train and test images.
SHEETS = {
    "caltech101": (["caltech101/train.zip"], ["caltech101/test.zip"]),
    "cifar100": (["cifar100/train.zip"], ["cifar100/test.zip"]),
    "flowers102": (["flowers102/train.zip", "flowers102/val.zip"], ["flowers102/test.zip"]),
    # TFDS has one split, which is divided in TFDS's order.
    "eurosat": (["eurosat/train.zip", "eurosat/test.zip"], []),
}


def _named(images: np.ndarray, names: list[str]) -> collections.Counter[tuple[str, str]]:
    """Counts how often each image occurs in each class."""
    hashes = (hashlib.sha256(image.tobytes()).hexdigest() for image in images)
    return collections.Counter(zip(hashes, names, strict=True))


def _read(split: sources.Split, classes: tuple[str, ...]) -> collections.Counter[tuple[str, str]]:
    examples = [split.read(i) for i in range(split.examples)]
    images = [decoding.decode(bytes(example.image)) for example in examples]
    return _named(np.stack(images), [classes[example.label].lower() for example in examples])


def _sheets(load: Any, folder: pathlib.Path, files: list[str], classes: tuple[str, ...]) -> Any:
    """Counts the same in the files; classes with unknown names are numbered in TFDS's order."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    known = [name.lower() for name in classes]
    for file in files:
        images, labels, names = load(folder / file)
        named = {name.lower() for name in names} <= set(known)
        titles = [names[label].lower() if named else known[label] for label in labels]
        counts += _named(images, titles)
    return counts


@pytest.mark.parametrize("name", SHEETS)
def test_tfds_gives_the_images_and_labels_of_the_source_files(
    name: str,
    shared: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(shared / "data"))
    load = importlib.import_module("load_sheets").load
    writer = importlib.import_module("write_tfds")
    writer.write(registry.RECORDS[name].tfds.partition(":")[0], str(tmp_path))
    train, test = SHEETS[name]

    source = data.open_source(name, path="", data_dir=str(tmp_path))

    expected = _sheets(load, shared / "data", train, source.classes)
    counts = _read(source.splits["train"], source.classes)
    tested = _read(source.splits["test"], source.classes)
    if test:
        assert counts == expected
        assert tested == _sheets(load, shared / "data", test, source.classes)
    else:
        assert counts + tested == expected
        assert sum(counts.values()) == round(0.8 * sum(expected.values()))
    assert source.official is False
