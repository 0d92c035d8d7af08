"""Every image looked at once: which can be decoded, their labels, and, if asked, their pixels.

What is found is kept in a folder that all runs share. An entry is written beside its place and
takes it whole: a kill leaves nothing that counts; of two writers, the second waits for the first.
"""

import concurrent.futures
import errno
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.images import decoding
from remem_jax.storage import files, identity, locks, logs, results

FORMAT = 2  # Of an entry; raised when what is kept changes.
_CHUNK = 32  # Images for each thread between two looks at what came of them.
_ABOUT, _INDEX, _PIXELS = "about.json", "index.npz", "pixels.bin"
_DIGEST_BYTES = 8  # Bytes that are kept of the digest of each image.
# What reading a damaged entry raises.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
_SAMPLES = 64  # Images that are compared with what is on the disk before an entry is used.


class Wanted(NamedTuple):
    """What is to be kept.

    Attributes:
        stored_size: Largest side of an image, in pixels.
        pixels: Whether to keep pixels, or only what they tell.
        limit: Largest size of the pixels, in bytes; where they take more, they are left out.
        corrupt: Images of this split that may be unreadable.
    """

    stored_size: int
    pixels: bool
    limit: int
    corrupt: int


class Found(NamedTuple):
    """What came of looking at a split.

    Attributes:
        kept: Rows of the images that can be decoded, int64.
        labels: Of these, int32.
        skipped: The others: name and reason.
        digest: Hash of the encoded images and the labels.
        resized: Whether any image is not of the size that it is stored in.
        pixels: uint8 (kept, height, width, 3), mapped from the disk where it was cached; None
            where pixels were not wanted or take more than the limit. Of the images' own size
            where all have the same, of at most the stored size; else squares of that.
        shapes: Height and width of each kept image as it is in its file, int32; None where an
            entry of an earlier version does not say.
    """

    kept: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...]
    digest: str
    resized: bool
    pixels: np.ndarray | None
    shapes: np.ndarray | None = None


class TooManyCorruptError(Exception):
    """More images cannot be decoded than may; the first of them are its arguments."""


def folder(setting: str) -> pathlib.Path:
    """The cache's folder: the one that is set, or `data` in that of REMEM_CACHE."""
    return checks.local_path("config.data.cache", setting) if setting else files.cache() / "data"


def look(
    split: sources.Split, wanted: Wanted, *, title: str, folder: pathlib.Path, threads: int
) -> Found:
    """Looks at every image of a split, or remembers what came of it.

    Where the cache may not be written to, what is there is read; else a warning says that nothing
    is kept, and pixels are held in memory.

    Args:
        split: What to look at.
        wanted: What to keep.
        title: What to call the split, for people.
        folder: Of the cache; not used for a split that is in memory already.
        threads: That decode.

    Raises:
        TooManyCorruptError: If more images cannot be decoded than may.
        SettingError: If the folder cannot be made, or its disk is full.
    """
    if not split.key:
        return _look_without(split, wanted, title, threads)
    content = json.dumps([FORMAT, identity.DECODING, split.key, wanted.stored_size])
    place = folder / hashlib.sha256(content.encode()).hexdigest()[:24]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"Another process decodes {title}; waiting for it."
        with locks.held(place.with_suffix(".lock"), waiting=waiting) as alone:
            found = _current(place, split, wanted)
            if found is None:
                _make(place, split, wanted, title, threads, alone=alone)
                found = _remembered(place, wanted)
    except OSError as error:
        if not _is_closed(folder, error):
            raise SettingError(
                f"{title} cannot be kept in {folder} ({error.strerror or error}): set "
                f"{_setting(folder)} to a folder that can be written, on a disk with room."
            ) from error
        found = _current(place, split, wanted)
        if found is None:
            logging.warning(
                "%s cannot be kept in %s (%s) and is decoded at every start; set %s to a folder "
                "that can be written.",
                title,
                folder,
                error.strerror,
                _setting(folder),
            )
            return _look_without(split, wanted, title, threads)
    if found is None:
        raise SettingError(f"{place} was removed while {title} was decoded; start again.")
    if len(found.skipped) > wanted.corrupt:
        raise TooManyCorruptError(*found.skipped)
    return found


def _look_without(split: sources.Split, wanted: Wanted, title: str, threads: int) -> Found:
    """Looks at every image, and keeps in memory what is wanted."""
    scan = _Scan(split, wanted, title, io.BytesIO)
    scan.run(threads)
    return scan.found(scan.pixels_in_memory())


def _setting(folder: pathlib.Path) -> str:
    """What says where the cache is."""
    return "REMEM_CACHE" if folder == files.cache() / "data" else "config.data.cache"


def _is_closed(folder: pathlib.Path, error: OSError) -> bool:
    """Whether a cache may not be written to; also where it would be is in a home that is none."""
    if error.errno in (errno.ENOTDIR, errno.ENOENT, errno.ENXIO):
        return _setting(folder) == "REMEM_CACHE"
    return files.is_closed(error)


class _Look(NamedTuple):
    """What one image came to.

    Attributes:
        label: Its class.
        digest: Hash of what is stored.
        shape: Height and width.
        image: Its pixels, at most `stored_size` high and wide; None where they are not wanted.
        error: Why it cannot be decoded; empty where it can.
    """

    label: int
    digest: bytes
    shape: tuple[int, int]
    image: np.ndarray | None
    error: str


def _look_at(split: sources.Split, stored_size: int, pixels: bool, row: int) -> _Look:
    try:
        image, label = split.read(row)
        digest = _digest(image)
        if isinstance(image, bytes):
            shape = decoding.size(image)
            # All of a JPEG is read even where an eighth of its pixels is made: what is cut shows.
            image = decoding.decode(image, at_least=None if pixels else (1, 1))
        else:
            shape = image.shape[:2]
    except decoding.CorruptImageError as error:
        return _Look(0, b"", (0, 0), None, str(error))
    if not pixels:
        return _Look(label, digest, shape, None, "")
    if max(shape) > stored_size:
        image = decoding.resize(image, stored_size)
    return _Look(label, digest, shape, image, "")


def _digest(image: bytes | np.ndarray) -> bytes:
    """Hash of an image as it is stored."""
    return hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest()


class _Scan:
    """One look at every image of a split, in order, and what has come of it so far."""

    def __init__(
        self,
        split: sources.Split,
        wanted: Wanted,
        title: str,
        make_file: Callable[[], BinaryIO],
    ) -> None:
        """Starts with nothing looked at.

        Args:
            split: What to look at.
            wanted: What to keep.
            title: What to call the split.
            make_file: Gives an empty file to write pixels to, and read them back.
        """
        self.split, self.wanted, self.title = split, wanted, title
        self._make_file = make_file
        self.file = make_file() if wanted.pixels else None
        self.shape: tuple[int, int] | None = None  # Of all images, as they would be stored.
        self.kept: list[int] = []
        self.labels: list[int] = []
        self._shapes: list[tuple[int, int]] = []
        self.digests: list[bytes] = []
        self.skipped: list[str] = []
        self.resized = False
        self._digest = hashlib.sha256()

    def run(self, threads: int) -> None:
        """Looks at all images; raises `TooManyCorruptError` as soon as that is sure."""
        progress = logs.Progress(self.title, first_step=0, steps=self.split.examples, unit="image")
        one = functools.partial(_look_at, self.split, self.wanted.stored_size, self.wanted.pixels)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for start in range(0, self.split.examples, _CHUNK * threads):
                rows = range(start, min(start + _CHUNK * threads, self.split.examples))
                for row, look in zip(rows, pool.map(one, rows), strict=True):
                    self._take(row, look)
                progress(rows.stop)
        progress.close()

    def found(self, pixels: np.ndarray | None) -> Found:
        """What has come of it, with its pixels."""
        return Found(
            np.asarray(self.kept, np.int64),
            np.asarray(self.labels, np.int32),
            tuple(self.skipped),
            self._digest.hexdigest()[:16],
            self.resized,
            pixels,
            self.shapes(),
        )

    def shapes(self) -> np.ndarray:
        """Height and width of each kept image, as it is in its file."""
        return np.asarray(self._shapes, np.int32).reshape(-1, 2)

    def pixels_in_memory(self) -> np.ndarray | None:
        """What was written to the file; None if nothing is kept."""
        if self.file is None or self.shape is None:
            return None
        self.file.seek(0)
        file = self.file
        content = file.getbuffer() if isinstance(file, io.BytesIO) else file.read()
        stored = np.frombuffer(content, np.uint8)
        return stored.reshape(len(self.kept), *self.shape, 3)

    def _take(self, row: int, look: _Look) -> None:
        if look.error:
            self.skipped.append(f"{self.split.name(row)}: {look.error}")
            if len(self.skipped) > self.wanted.corrupt:
                raise TooManyCorruptError(*self.skipped)
            return
        side = self.wanted.stored_size
        shape = look.shape if max(look.shape) <= side else (side, side)
        if self.shape is None:
            self.shape = shape
        elif self.shape != shape:
            self._turn_to_squares()
        self.resized |= look.shape != self.shape
        self.kept.append(row)
        self.labels.append(look.label)
        self._shapes.append(look.shape)
        self.digests.append(look.digest[:_DIGEST_BYTES])
        self._digest.update(look.digest + look.label.to_bytes(4, "little"))
        if self.file is None or look.image is None:
            return
        if math.prod(self.shape) * 3 * self.split.examples > self.wanted.limit:
            self.file.close()
            self.file = None
            return
        self.file.write(_fitted(look.image, self.shape).tobytes())

    def _turn_to_squares(self) -> None:
        """Images are of more than one shape: those that were written are written again."""
        before, side = self.shape, self.wanted.stored_size
        self.shape = (side, side)
        self.resized = True
        if self.file is None or before in (None, self.shape):
            return
        old, self.file = self.file, self._make_file()
        old.seek(0)
        with old:
            for _ in self.kept:
                image = np.frombuffer(old.read(math.prod(before) * 3), np.uint8)
                self.file.write(_fitted(image.reshape(*before, 3), self.shape).tobytes())


def _fitted(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return image if image.shape[:2] == shape else decoding.resize(image, shape[0])


def _opener(partial: pathlib.Path) -> Callable[[], BinaryIO]:
    """Makes the file of an entry's pixels; a second one takes the place of the first."""
    path = partial / _PIXELS

    def make() -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # Who has it open still reads it.
        return path.open("w+b")

    return make


def _make(
    place: pathlib.Path,
    split: sources.Split,
    wanted: Wanted,
    title: str,
    threads: int,
    *,
    alone: bool,
) -> None:
    """Looks at a split and leaves an entry that is whole; the lock is held.

    Where the lock may be another machine's too (not `alone`), each has its own partial folder, and
    the first entry that is whole stays.
    """
    partial = place.with_suffix(".partial" if alone else f".{os.uname().nodename}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # Of a start that was killed.
    partial.mkdir(parents=True)
    logging.info("%s: looking at %d images, once; kept in %s.", title, split.examples, place.parent)
    scan = _Scan(split, wanted, title, _opener(partial))
    try:
        scan.run(threads)
        found = scan.found(pixels=None)
        with (partial / _INDEX).open("wb") as file:
            digests = np.frombuffer(b"".join(scan.digests), np.uint8).reshape(-1, _DIGEST_BYTES)
            arrays = {"kept": found.kept, "labels": found.labels, "digests": digests}
            np.savez(file, **arrays, shapes=scan.shapes())
            _flush(file)
        if scan.file is not None:
            _flush(scan.file)
        about = {
            "title": title,
            "shape": scan.shape,
            "pixels": scan.file is not None,
            "skipped": found.skipped,
            "digest": found.digest,
            "resized": found.resized,
        }
        results.write(partial / _ABOUT, about)
        _name(partial, place, alone=alone)
    finally:
        if scan.file is not None:
            scan.file.close()
        shutil.rmtree(partial, ignore_errors=True)


def _name(partial: pathlib.Path, place: pathlib.Path, *, alone: bool) -> None:
    """Gives an entry its name, in place of one that held less than is wanted now."""
    shutil.rmtree(place, ignore_errors=True)
    try:
        partial.rename(place)
    except OSError:
        if alone or not place.exists():  # Else another machine was first.
            raise


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remembered(place: pathlib.Path, wanted: Wanted) -> Found | None:
    """What an entry holds; None if there is none, it is damaged, or more is wanted."""
    try:
        about = results.read(place / _ABOUT)
        if about is None:
            return None
        with (place / _INDEX).open("rb") as file, np.load(file, allow_pickle=False) as index:
            kept, labels, shapes = index["kept"], index["labels"], index.get("shapes")
        pixels = None
        shape = (len(kept), *(about["shape"] or (0, 0)), 3)
        if wanted.pixels and math.prod(shape) <= wanted.limit:
            if not about["pixels"]:
                return None
            pixels = _mapped(place / _PIXELS, shape)
        return Found(
            kept, labels, tuple(about["skipped"]), about["digest"], about["resized"], pixels, shapes
        )
    except PermissionError:
        return None
    except _DAMAGED as error:
        logging.warning("%s is damaged (%s) and is made again.", place, error)
        return None


def _current(place: pathlib.Path, split: sources.Split, wanted: Wanted) -> Found | None:
    """What an entry holds, if that is of the images that are there now."""
    return None if _is_stale(place, split) else _remembered(place, wanted)


def _is_stale(place: pathlib.Path, split: sources.Split) -> bool:
    """Whether an entry is of other images than are there now, as far as a sample of them tells.

    A changed file has another time of change, and with it another entry. But some file systems
    keep no such time, and images that are mounted in place of others may have the same.
    """
    try:
        with (place / _INDEX).open("rb") as file, np.load(file, allow_pickle=False) as index:
            kept, labels, digests = (index[name] for name in ("kept", "labels", "digests"))
    except _DAMAGED:  # Told when it is read.
        return False
    stale = not _agrees(split, kept, labels, digests)
    if stale:
        logging.info("%s is of other images than are there now, and is made again.", place)
    return stale


def _agrees(
    split: sources.Split, kept: np.ndarray, labels: np.ndarray, digests: np.ndarray
) -> bool:
    for i in np.unique(np.linspace(0, len(kept) - 1, _SAMPLES).astype(int)) if len(kept) else ():
        try:
            image, label = split.read(int(kept[i]))
        except decoding.CorruptImageError:
            return False
        if label != labels[i] or _digest(image)[:_DIGEST_BYTES] != digests[i].tobytes():
            return False
    return True


def _mapped(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.stat().st_size != math.prod(shape):
        raise ValueError(f"{path.stat().st_size} bytes of pixels, not {math.prod(shape)}")
    if not math.prod(shape):  # Nothing can be mapped.
        return np.zeros(shape, np.uint8)
    return np.memmap(path, np.uint8, mode="r", shape=shape)
