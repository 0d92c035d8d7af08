"""TFRecord files read without TensorFlow, checked with tensorboardX and TFDS."""

import io
import os
import pathlib
import pickle
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorboardX.record_writer
import tensorflow_datasets
from PIL import Image

from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.tfds import prepared, tfrecord
from tests.data import tiny_tfds

RECORDS = [b"", b"a", b"some bytes", bytes(1000), b"the last"]


class Shard(NamedTuple):
    """A range of records in a file, with the fields of TFDS's `FileInstruction`."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "file.tfrecord"
    tiny_tfds.write_frames(path, RECORDS)
    return path


def _whole(file: pathlib.Path) -> Shard:
    return Shard(str(file), 0, len(RECORDS), len(RECORDS))


def test_records_are_read_as_written(file: pathlib.Path) -> None:
    records = tfrecord.Records([_whole(file)])

    assert [records[i] for i in range(len(records))] == RECORDS


def test_shards_are_concatenated(file: pathlib.Path) -> None:
    shards = [Shard(str(file), skip, take, 5) for skip, take in ((1, 2), (0, 0), (4, 1), (0, 3))]

    records = tfrecord.Records(shards)

    expected = [*RECORDS[1:3], *RECORDS[4:], *RECORDS[:3]]
    assert [records[i] for i in range(len(records))] == expected


def test_a_file_may_have_no_records(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").touch()

    assert len(tfrecord.Records([Shard(str(tmp_path / "empty"), 0, 0, 0)])) == 0


@pytest.mark.parametrize("i", [-1, 5])
def test_an_index_out_of_range_is_an_error(file: pathlib.Path, i: int) -> None:
    with pytest.raises(IndexError):
        tfrecord.Records([_whole(file)])[i]


def test_unpickling_does_not_index_again(file: pathlib.Path) -> None:
    records = tfrecord.Records([_whole(file)])
    stored = pickle.dumps(records)
    with file.open("r+b") as opened:  # Overwrites the headers of all frames, not the data.
        for start, _ in records.spans:
            opened.seek(start - 12)
            opened.write(bytes(12))

    restored = pickle.loads(stored)

    assert [restored[i] for i in range(5)] == RECORDS


@pytest.mark.parametrize("length", [0, 1, 255, 110_000, 2**33 + 5])
def test_checksums_match_tensorboardx(length: int) -> None:
    head = struct.pack("<Q", length)

    assert tfrecord.masked_crc32c(head) == tensorboardX.record_writer.masked_crc32c(head)


@pytest.mark.parametrize("lost", [1, 4, 5, 12, 24, 27, 100])
def test_a_truncated_file_is_refused(file: pathlib.Path, lost: int) -> None:
    """Cuts at every byte of the last frame: 8 bytes of data and 16 bytes around them."""
    os.truncate(file, file.stat().st_size - lost)

    with pytest.raises(SettingError, match=f"{file} cannot be read: .*prepare the data set again"):
        tfrecord.Records([_whole(file)])


@pytest.mark.parametrize("place", range(12))
def test_a_changed_header_is_refused(file: pathlib.Path, place: int) -> None:
    whole = bytearray(file.read_bytes())
    whole[16 + place] ^= 0x40  # In the second frame, as the first has no data.
    file.write_bytes(whole)

    with pytest.raises(SettingError, match="the head of record 1 does not fit its checksum"):
        tfrecord.Records([_whole(file)])


def test_bytes_after_the_last_record_are_refused(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")

    with pytest.raises(SettingError, match="ends within a record"):
        tfrecord.Records([_whole(file)])


def test_a_file_with_other_records_is_refused(file: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="it has 5 records, expected 6"):
        tfrecord.Records([Shard(str(file), 0, 6, 6)])


def test_a_missing_file_is_refused(file: pathlib.Path) -> None:
    file.unlink()

    with pytest.raises(SettingError, match="No such file"):
        tfrecord.Records([_whole(file)])


def test_a_file_truncated_after_opening_is_an_error(file: pathlib.Path) -> None:
    records = tfrecord.Records([_whole(file)])
    os.truncate(file, file.stat().st_size - 8)

    with pytest.raises(OSError, match="was cut off while it was read"):
        records[4]


# Whole TFDS data sets in both formats.

NAMES = ("eurosat", "flowers102", "sun397_tfds")


class Folders(NamedTuple):
    """TFDS folders with the same data sets in two formats."""

    array_record: pathlib.Path
    tfrecord: pathlib.Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    rng = np.random.default_rng(0)
    array_record, tf_record = (
        tmp_path_factory.mktemp(name) for name in ("array_record", "tfrecord")
    )
    for name in NAMES:
        splits = {
            split: (rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8), np.arange(count) % 3)
            for split, count in (("train", 11), ("validation", 5), ("test", 4))
        }
        folder = tiny_tfds.write(registry.RECORDS[name].tfds, array_record, splits)
        tiny_tfds.as_tfrecord(folder, tf_record / folder.relative_to(array_record), shards=3)
    return Folders(array_record, tf_record)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_their_order_match_array_record(folders: Folders, name: str, split: str) -> None:
    """TFDS reads the array_record files; it guarantees the same order for both formats."""
    record = registry.RECORDS[name]
    builder: Any = tensorflow_datasets.builder(record.tfds, data_dir=str(folders.array_record))
    stored = builder.as_data_source(record.train if split == "train" else record.test)

    subset = prepared.tfds(name, str(folders.tfrecord)).splits[split]

    read = [subset.read(i) for i in range(subset.examples)]
    assert [example.label for example in read] == [example["label"] for example in stored]
    images = [np.asarray(Image.open(io.BytesIO(bytes(example.image)))) for example in read]
    np.testing.assert_array_equal(images, [example["image"] for example in stored])


@pytest.mark.parametrize("name", NAMES)
def test_classes_match_array_record(folders: Folders, name: str) -> None:
    first, second = (prepared.tfds(name, str(folder)) for folder in folders)

    assert first.classes == second.classes


def test_a_split_can_be_pickled(folders: Folders) -> None:
    split: sources.Split = prepared.tfds("eurosat", str(folders.tfrecord)).splits["test"]

    restored = pickle.loads(pickle.dumps(split))

    assert [restored.read(i) for i in range(2)] == [split.read(i) for i in range(2)]
    assert (restored.key, restored.name(1)) == (split.key, "eurosat train[80%:] 1")
