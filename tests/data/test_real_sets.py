"""Real images of four data sets, read through TFDS and compared with their source files."""

import collections
import functools
import hashlib
import importlib
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

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


Counts = collections.Counter[tuple[str, str]]


class Writer:
    """Writes and reads the source files; keeps the image of each PNG file by its hash."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Imports the functions of the folder, and makes them faster."""
        monkeypatch.syspath_prepend(str(folder))
        sheets = importlib.import_module("load_sheets")
        self._writer = importlib.import_module("write_tfds")
        self._folder = folder
        self.images: dict[str, np.ndarray] = {}
        self.load = functools.cache(sheets.load)  # Both the writer and the test read each file.
        monkeypatch.setattr(sheets, "load", self.load)
        monkeypatch.setattr(self._writer, "png", self._png)

    def write(self, name: str, folder: pathlib.Path) -> None:
        self._writer.write(name, str(folder))

    def _png(self, image: np.ndarray) -> bytes:
        """Compresses quickly; the default level takes a quarter of the test."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        self.images[_hash(buffer.getvalue())] = image
        return buffer.getvalue()

    def count(self, files: list[str], classes: tuple[str, ...]) -> Counts:
        """Counts how often each image occurs in each class of the files.

        Classes with unknown names are numbered in TFDS's order.
        """
        counts: Counts = collections.Counter()
        known = [name.lower() for name in classes]
        for file in files:
            images, labels, names = self.load(self._folder / file)
            named = {name.lower() for name in names} <= set(known)
            titles = [names[label].lower() if named else known[label] for label in labels]
            counts.update(zip(map(_hash, images), titles, strict=True))
        return counts

    def count_read(self, split: sources.Split, classes: tuple[str, ...]) -> Counts:
        """Counts the same in a split, whose files are unchanged; decodes every fourth."""
        counts: Counts = collections.Counter()
        for i in range(split.examples):
            example = split.read(i)
            content = bytes(example.image)
            image = self.images[_hash(content)]
            if i % 4 == 0:
                image = decoding.decode(content)
            counts[_hash(image), classes[example.label].lower()] += 1
        return counts


def _hash(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).hexdigest()


@pytest.mark.parametrize("name", SHEETS)
def test_tfds_gives_the_images_and_labels_of_the_source_files(
    name: str,
    shared: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer(shared / "data", monkeypatch)
    writer.write(registry.RECORDS[name].tfds.partition(":")[0], tmp_path)
    train, test = SHEETS[name]

    source = data.open_source(name, path="", data_dir=str(tmp_path))

    expected = writer.count(train, source.classes)
    counts = writer.count_read(source.splits["train"], source.classes)
    tested = writer.count_read(source.splits["test"], source.classes)
    if test:
        assert counts == expected
        assert tested == writer.count(test, source.classes)
    else:
        assert counts + tested == expected
        assert sum(counts.values()) == round(0.8 * sum(expected.values()))
    assert source.official is False
