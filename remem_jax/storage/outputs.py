"""Stores the teacher's outputs by step, for all students that learn from the same images.

The file has one row of fixed length per step: a digest, then the array's bytes. It is sparse: its
length is final from the start, and it uses disk space as rows are written. A digest of zeros means
that the row has not been written.
"""

import contextlib
import errno
import hashlib
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import DTypeLike

from remem_jax.checks import SettingError
from remem_jax.storage import files, locks, results

_FORMAT = 1  # Version of the file format.
_DIGEST = 16  # Bytes of a row's digest.


class StoredOutputs:
    """Arrays of one shape by step, in a folder that all runs share; a context manager.

    Reading returns bit for bit what was written for the same facts and step, or nothing: each row
    has a digest of its bytes and its position, which is verified when it is read. So a kill or a
    power cut only loses rows that were not on the disk.

    Several runs may read and write the same file at once, without a lock. The facts determine the
    outputs, so all runs write the same bytes to the same positions, in any order. If the bytes
    differ in the last bits, as on another kind of device, a row has those of one writer: a mixture
    does not match its digest.

    If the folder is read-only, existing rows are read, and a warning says that nothing is stored.

    Attributes:
        steps: Number of steps.
        row_bytes: Size of a step's row in bytes.
    """

    def __init__(
        self,
        *,
        folder: pathlib.Path,
        facts: Mapping[str, Any],
        steps: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        """Opens the file for these facts, or creates it.

        Args:
            folder: Shared folder; created if missing.
            facts: Everything that determines the outputs of a step; JSON values, which are stored
                beside the file.
            steps: Number of steps; a file with fewer or more steps is used too.
            shape: Shape of one step's array in this process.
            dtype: Type of one step's array.
            process: Index of this process, and number of processes; each has its own rows.

        Raises:
            SettingError: If the folder cannot be made, or its disk is too full.
        """
        self._folder, self.steps = folder.absolute(), steps
        self._shape, self._dtype = shape, np.dtype(dtype)
        self.row_bytes = _DIGEST + math.prod(shape) * self._dtype.itemsize
        self._warned = False
        about = {
            "format": _FORMAT,
            "facts": dict(facts),
            "shape": shape,
            "dtype": self._dtype.name,
            "process": process,
        }
        self._name = results.fingerprint(about)
        self._path = self._folder / self._name / "outputs.bin"
        with self._errors_explained():
            self._file, self._stores = self._opened(about)

    def __enter__(self) -> "StoredOutputs":
        return self

    def __exit__(self, *error: object) -> None:
        # Not flushed to the disk: rows that are lost are computed again.
        if self._file is not None:
            os.close(self._file)

    def _opened(self, about: Mapping[str, Any]) -> tuple[int | None, bool]:
        """Opens the file; returns None if there is none, and whether it is writable."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._require_room()
            self._make(about)
            return os.open(self._path, os.O_RDWR), True
        except OSError as error:
            if not files.is_closed(error):
                raise
            logging.warning(
                "The teacher's outputs are not stored in %s (%s); set REMEM_CACHE to a folder that "
                "can be written.",
                self._folder,
                error.strerror,
            )
        with contextlib.suppress(OSError):
            return os.open(self._path, os.O_RDONLY), False
        return None, False

    def read(self, step: int) -> np.ndarray | None:
        """Returns the array of a step; None if it was not written, or is damaged."""
        offset = self._offset(step)
        if self._file is None:
            return None
        stored, array = bytearray(_DIGEST), np.zeros(self._shape, self._dtype)
        content = _bytes(array)
        try:
            # `write` writes the digest last: if the digest is there, so is the row.
            whole = os.preadv(self._file, [stored], offset) == _DIGEST
            if whole and not any(stored):
                return None
            os.preadv(self._file, [content], offset + _DIGEST)
        except OSError as error:
            self._warn(f"step {step}: {error.strerror}")
            return None
        if stored != self._digest(step, content):
            self._warn(f"step {step} has other bytes than were written")
            return None
        return array

    def write(self, step: int, array: np.ndarray) -> None:
        """Stores the array of a step, unless the folder is read-only.

        Raises:
            ValueError: If the array has another shape or type.
            SettingError: If it cannot be written, for example on a full disk.
        """
        if array.shape != self._shape or array.dtype != self._dtype:
            raise ValueError(
                f"Outputs of step {step} must be {self._dtype.name} {self._shape}, got "
                f"{array.dtype.name} {array.shape}."
            )
        offset, content = self._offset(step), _bytes(array)
        if self._file is None or not self._stores:
            return
        with self._errors_explained():  # A memory map would kill the process on a full disk.
            _write_whole(self._file, content, offset + _DIGEST)
            _write_whole(self._file, memoryview(self._digest(step, content)), offset)

    def _offset(self, step: int) -> int:
        if not 0 <= step < self.steps:
            raise ValueError(f"Steps are from 0 to {self.steps - 1}, got {step}.")
        return step * self.row_bytes

    def _digest(self, step: int, content: memoryview) -> bytes:
        """Returns the digest of a row, which includes its position, to detect displaced rows."""
        digest = hashlib.sha256(f"{self._name} {step} ".encode())
        digest.update(content)
        return digest.digest()[:_DIGEST]

    def _require_room(self) -> None:
        taken = self._path.stat().st_blocks * 512 if self._path.exists() else 0
        needed, free = self.steps * self.row_bytes - taken, shutil.disk_usage(self._folder).free
        if needed > free:
            sizes = f"{needed / 2**20:.1f} MiB are needed, {free / 2**20:.1f} MiB are free"
            raise OSError(errno.ENOSPC, sizes)

    def _make(self, about: Mapping[str, Any]) -> None:
        """Creates or extends the file; runs that start at the same time take turns here."""
        self._path.parent.mkdir(exist_ok=True)
        written = self._path.with_name("facts.json")
        with self._path.open("ab") as file:
            locks.lock(file)  # Without locks, rows that another run truncates are computed again.
            size = os.fstat(file.fileno()).st_size
            if written.exists() and (size == 0 or size % self.row_bytes):
                self._warn(f"it has {size} bytes, not rows of {self.row_bytes}")
            file.truncate(max(self.steps, math.ceil(size / self.row_bytes)) * self.row_bytes)
            if not written.exists():  # Last: without the facts, an empty file is new, not damaged.
                results.write(written, about)

    def _warn(self, damage: str) -> None:
        if not self._warned:
            logging.warning("%s is damaged (%s); what is lost is made again.", self._path, damage)
        self._warned = True

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Turns system errors into one for the user."""
        try:
            yield
        except OSError as error:
            raise SettingError(
                f"The teacher's outputs could not be stored in {self._folder} ({error.strerror}): "
                "set config.student.store_outputs to False, or REMEM_CACHE to a folder with more "
                "room that can be written."
            ) from error


def _bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array, without a copy if it is C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_whole(file: int, content: memoryview, offset: int) -> None:
    """Writes all bytes; on a full disk, the first write is short and the next one fails."""
    while content:
        done = os.pwrite(file, content, offset)
        content, offset = content[done:], offset + done
