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
from typing import Any

import google_crc32c
import numpy as np

from remem_jax.checks import SettingError

_HEAD, _TAIL = 12, 4  # Bytes of a frame before and after its data.
_MASK = 0xA282EAD8


class Records:
    """Reads records of TFRecord files by index; thread-safe, and pickled as offsets.

    The checksums of the data are not verified: that would take longer than decoding the images.

    Attributes:
        files: Paths of the files.
        ends: Cumulative number of records up to and including each file.
        spans: int64 (record, 2), the offset and the length of the data of each record.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        """Indexes the files.

        Args:
            shards: Instances of TFDS's `FileInstruction`. `filename` has `examples_in_shard`
                records; `take` of them are read, after the first `skip`.

        Raises:
            SettingError: If a file is missing, damaged or cut off.
        """
        spans = [np.empty((0, 2), np.int64)]
        for shard in shards:
            indexed = index(pathlib.Path(shard.filename))
            if len(indexed) != shard.examples_in_shard:
                raise damaged(
                    shard.filename,
                    f"it has {len(indexed)} records, expected {shard.examples_in_shard}",
                )
            spans.append(indexed[shard.skip : shard.skip + shard.take])
        self.files = [os.fspath(shard.filename) for shard in shards]
        self.ends = np.cumsum([shard.take for shard in shards], dtype=np.int64)
        self.spans = np.concatenate(spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> bytes:
        if not 0 <= i < len(self.spans):
            raise IndexError(f"Record {i} of {len(self.spans)}.")
        file = self.files[int(np.searchsorted(self.ends, i, side="right"))]
        start, length = (int(number) for number in self.spans[i])
        # Opened for each record: a data set may have more files than a process may keep open.
        with pathlib.Path(file).open("rb", buffering=0) as opened:
            data = os.pread(opened.fileno(), length, start)
        if len(data) != length:
            raise OSError(f"{file} was cut off while it was read")
        return data


def index(path: pathlib.Path) -> np.ndarray:
    """Returns the offset and the length of the data of each record: int64 (record, 2).

    Only the heads of the frames are read; their checksums are verified.

    Raises:
        SettingError: If the file is missing, damaged or cut off.
    """
    try:
        return np.asarray(_spans(path, path.stat().st_size), np.int64).reshape(-1, 2)
    except OSError as error:
        raise damaged(os.fspath(path), error.strerror or str(error)) from None


def _spans(path: pathlib.Path, size: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    if not size:
        return spans
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if hasattr(mmap, "MADV_RANDOM"):
            data.madvise(mmap.MADV_RANDOM)  # Otherwise the data between the heads is read too.
        offset = 0
        while offset + _HEAD <= size:
            head = data[offset : offset + 8]
            length = int.from_bytes(head, "little")
            if masked_crc32c(head) != int.from_bytes(data[offset + 8 : offset + _HEAD], "little"):
                raise damaged(
                    os.fspath(path), f"the head of record {len(spans)} does not fit its checksum"
                )
            spans.append((offset + _HEAD, length))
            offset += _HEAD + length + _TAIL
    if offset != size:
        raise damaged(os.fspath(path), f"it has {size:,} bytes and ends within a record")
    return spans


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum that TFRecord stores for some bytes."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def damaged(path: str, reason: str) -> SettingError:
    """Returns the error for a file that cannot be read."""
    return SettingError(
        f"{path} cannot be read: {reason}; copy it again, or remove the folder that it is in and "
        "prepare the data set again."
    )
