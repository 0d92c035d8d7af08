"""Random access to records of TFRecord files, TFDS's default format, without TensorFlow.

A file is a sequence of frames: the length of the data (8 bytes, little endian), a checksum of the
length (4 bytes), the data, a checksum of the data (4 bytes).

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord; checksums are CRC-32C (RFC 3720,
appendix B.4), rotated and shifted.
"""

import mmap
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from remem_jax.checks import SettingError

_HEAD, _TAIL = 12, 4  # Bytes of a frame before its data, and after.
_MASK = 0xA282EAD8


class Records:
    """The records of parts of files, in their order; read by any thread, pickled as offsets.

    The data's own checksums are not looked at: they would take longer than decoding an image.

    Attributes:
        files: Paths.
        ends: How many records lie in the files up to each one, that one included.
        spans: int64 (record, 2): where the data of each record start, and their length.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        """Indexes the files.

        Args:
            parts: As TFDS's `FileInstruction`: `filename`, and of its `examples_in_shard` records
                `take` after the first `skip`.

        Raises:
            SettingError: If a file is missing, damaged or cut off.
        """
        found = [index(pathlib.Path(part.filename)) for part in parts]
        for part, spans in zip(parts, found, strict=True):
            if len(spans) != part.examples_in_shard:
                raise damaged(
                    part.filename,
                    f"it holds {len(spans)} records, expected {part.examples_in_shard}",
                )
        self.files = [os.fspath(part.filename) for part in parts]
        self.ends = np.cumsum([part.take for part in parts], dtype=np.int64)
        self.spans = np.concatenate(
            [np.empty((0, 2), np.int64)]
            + [
                spans[part.skip : part.skip + part.take]
                for part, spans in zip(parts, found, strict=True)
            ]
        )

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> bytes:
        if not 0 <= i < len(self.spans):
            raise IndexError(f"Record {i} of {len(self.spans)}.")
        file = self.files[int(np.searchsorted(self.ends, i, side="right"))]
        start, length = (int(number) for number in self.spans[i])
        # Opened for each record: a set may have more files than a process may keep open.
        with pathlib.Path(file).open("rb", buffering=0) as opened:
            data = os.pread(opened.fileno(), length, start)
        if len(data) != length:
            raise OSError(f"{file} was cut off while it was read")
        return data


class _Heads(NamedTuple):
    """Frames of a file: where their data start, how long these are, and the lengths' checksums."""

    starts: list[int]
    lengths: list[int]
    checksums: list[int]


def index(path: pathlib.Path) -> np.ndarray:
    """Where the records of a file lie: int64 (record, 2), start and length of the data.

    Reads the heads of the frames alone.

    Raises:
        SettingError: If there is no such file, or it is damaged or cut off.
    """
    try:
        size = path.stat().st_size
        heads = _heads(path, size)
    except OSError as error:
        raise damaged(os.fspath(path), error.strerror or str(error)) from None
    lengths = np.asarray(heads.lengths, np.uint64)
    wrong = np.flatnonzero(masked_crc32c(lengths) != np.asarray(heads.checksums, np.uint32))
    if len(wrong):
        raise damaged(os.fspath(path), f"the head of record {wrong[0]} does not fit its checksum")
    end = heads.starts[-1] + heads.lengths[-1] + _TAIL if heads.starts else 0
    if end != size:
        raise damaged(os.fspath(path), f"it has {size:,} bytes and ends within a record")
    return np.stack([np.asarray(heads.starts, np.int64), lengths.astype(np.int64)], axis=1)


def _heads(path: pathlib.Path, size: int) -> _Heads:
    """Heads of frames up to the end of the file, or up to where it cannot go on."""
    heads = _Heads([], [], [])
    if not size:
        return heads
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if hasattr(mmap, "MADV_RANDOM"):
            data.madvise(mmap.MADV_RANDOM)  # Or what lies between the heads is read as well.
        place = 0
        while place + _HEAD <= size:
            length = int.from_bytes(data[place : place + 8], "little")
            heads.starts.append(place + _HEAD)
            heads.lengths.append(length)
            heads.checksums.append(int.from_bytes(data[place + 8 : place + _HEAD], "little"))
            place += _HEAD + length + _TAIL
    return heads


def masked_crc32c(numbers: np.ndarray) -> np.ndarray:
    """TFRecord's checksum of each uint64, taken as 8 bytes in little endian."""
    crc = np.full(numbers.shape, 0xFFFFFFFF, np.uint32)
    for column in numbers.astype("<u8").view(np.uint8).reshape(-1, 8).T:
        crc = _TABLE[(crc & 0xFF) ^ column] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(_MASK)


def _crc_table() -> np.ndarray:
    """CRC-32C of each byte (polynomial 0x1EDC6F41, reflected)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _crc_table()


def damaged(path: str, what: str) -> SettingError:
    """What to raise of a file that cannot be read."""
    return SettingError(
        f"{path} cannot be read: {what}; copy it again, or remove the folder that it is in and "
        "prepare the data set again."
    )
