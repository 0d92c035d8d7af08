"""The cache of scans, which all runs share.

An entry is written under another name and renamed when it is complete, so a kill leaves no partial
entry; of two writers, the second waits for the first.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from absl import logging

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import scan, sources
from remem_jax.data.images import decoding
from remem_jax.data.scan import ScanOptions, ScanResult
from remem_jax.storage import files, identity, locks, results

FORMAT = 3  # Version of an entry; increased when its content changes.
_ABOUT, _INDEX, _PIXELS = "about.json", "index.npz", "pixels.bin"
_ARRAYS = ("kept", "labels", "shapes", "digests", "thumbnails")  # Of `ScanResult`, in the index.
# Exceptions raised by reading a damaged entry.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
_SAMPLES = 64  # Number of images that are compared with the source before an entry is used.


def folder(setting: str) -> pathlib.Path:
    """Returns the cache's folder: `config.data.cache`, or `data` in the folder of REMEM_CACHE."""
    return checks.local_path("config.data.cache", setting) if setting else files.cache() / "data"


def scan_split(
    split: sources.Split, options: ScanOptions, *, title: str, folder: pathlib.Path, threads: int
) -> ScanResult:
    """Scans every image of a split, or reads the result from the cache.

    If the cache is read-only, existing entries are read. Otherwise a warning says that nothing is
    cached, and pixels stay in memory.

    Args:
        split: The split.
        options: Options of the scan.
        title: Name of the split, for messages.
        folder: The cache; not used for a split that is in memory already.
        threads: Number of threads that decode.

    Raises:
        TooManyCorruptError: If more images cannot be decoded than are accepted.
        SettingError: If the folder cannot be made, or its disk is full.
    """
    if not split.key:
        return scan.in_memory(split, options, title, threads)
    content = json.dumps([FORMAT, identity.DECODING, split.key, options.stored_size])
    entry = folder / hashlib.sha256(content.encode()).hexdigest()[:24]
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"Another process decodes {title}; waiting for it."
        with locks.held(entry.with_suffix(".lock"), waiting=waiting) as exclusive:
            result = _read_current(entry, split, options)
            if result is None:
                _make(entry, split, options, title, threads, exclusive=exclusive)
                result = _read(entry, options)
    except OSError as error:
        if not _is_read_only(folder, error):
            raise SettingError(
                f"{title} cannot be kept in {folder} ({error.strerror or error}): set "
                f"{_setting(folder)} to a folder that can be written, on a disk with room."
            ) from error
        result = _read_current(entry, split, options)
        if result is None:
            logging.warning(
                "%s cannot be kept in %s (%s) and is decoded at every start; set %s to a folder "
                "that can be written.",
                title,
                folder,
                error.strerror,
                _setting(folder),
            )
            return scan.in_memory(split, options, title, threads)
    if result is None:
        raise SettingError(f"{entry} was removed while {title} was decoded; start again.")
    if len(result.corrupt) > options.corrupt_limit:
        raise scan.TooManyCorruptError(*result.corrupt)
    return result


def remembered(
    kind: str, key: str, make: Callable[[], np.ndarray], *, folder: pathlib.Path
) -> np.ndarray:
    """Returns what `make` returns, or reads it from the cache if it was made before.

    Args:
        kind: What it is; part of the file's name.
        key: What it is made from; "" if it must not be kept.
        make: Makes it.
        folder: The cache.
    """
    content = json.dumps([FORMAT, identity.DECODING, key])
    path = folder / f"{kind}_{hashlib.sha256(content.encode()).hexdigest()[:24]}.npy"
    if key:
        try:
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        except _DAMAGED:  # It is not there, as a rule.
            pass
    made = make()
    if key:
        with contextlib.suppress(OSError), files.replacing(path) as file:
            np.save(file, made, allow_pickle=False)
    return made


def _setting(folder: pathlib.Path) -> str:
    """Returns the name of the setting that decides where the cache is."""
    return "REMEM_CACHE" if folder == files.cache() / "data" else "config.data.cache"


def _is_read_only(folder: pathlib.Path, error: OSError) -> bool:
    """Returns whether the cache cannot be written to; also if the home folder does not exist."""
    if error.errno in (errno.ENOTDIR, errno.ENOENT, errno.ENXIO):
        return _setting(folder) == "REMEM_CACHE"
    return files.is_closed(error)


def _opener(partial: pathlib.Path) -> Callable[[], BinaryIO]:
    """Returns a function that opens the file of an entry's pixels, in place of an earlier one."""
    path = partial / _PIXELS

    def make() -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # An open file can still be read.
        return path.open("w+b")

    return make


def _make(
    entry: pathlib.Path,
    split: sources.Split,
    options: ScanOptions,
    title: str,
    threads: int,
    *,
    exclusive: bool,
) -> None:
    """Scans a split and writes a complete entry; the caller has the lock.

    If another machine may have the lock too (not `exclusive`), each writes to a partial folder of
    its own, and the first complete entry stays.
    """
    partial = entry.with_suffix(".partial" if exclusive else f".{os.uname().nodename}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # Left by a process that was killed.
    partial.mkdir(parents=True)
    examples = split.examples
    logging.info(
        "Scanning %s, once: %d images. They are kept in %s.", title, examples, entry.parent
    )
    scanner = scan.Scanner(split, options, title, _opener(partial))
    try:
        scanner.run(threads)
        result = scanner.result(pixels=None)
        with (partial / _INDEX).open("wb") as file:
            np.savez(file, **{name: getattr(result, name) for name in _ARRAYS})
            _flush(file)
        if scanner.file is not None:
            _flush(scanner.file)
        about = {
            "title": title,
            "shape": scanner.shape,
            "pixels": scanner.file is not None,
            "skipped": result.corrupt,
            "digest": result.digest,
            "resized": result.resized,
        }
        results.write(partial / _ABOUT, about)
        _rename(partial, entry, exclusive=exclusive)
    finally:
        if scanner.file is not None:
            scanner.file.close()
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: pathlib.Path, entry: pathlib.Path, *, exclusive: bool) -> None:
    """Renames a complete entry, in place of one that was stale, damaged or without pixels."""
    shutil.rmtree(entry, ignore_errors=True)
    try:
        partial.rename(entry)
    except OSError:
        if exclusive or not entry.exists():  # Otherwise another machine was first.
            raise


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read(entry: pathlib.Path, options: ScanOptions) -> ScanResult | None:
    """Reads an entry; None if there is none, it is damaged, or it lacks pixels that are needed."""
    try:
        about = results.read(entry / _ABOUT)
        if about is None:
            return None
        with (entry / _INDEX).open("rb") as file, np.load(file, allow_pickle=False) as index:
            arrays = {name: index[name] for name in _ARRAYS}
        pixels = None
        shape = (len(arrays["kept"]), *(about["shape"] or (0, 0)), 3)
        if options.pixels and math.prod(shape) <= options.max_bytes:
            if not about["pixels"]:
                return None
            pixels = _mapped(entry / _PIXELS, shape)
        corrupt, digest, resized = tuple(about["skipped"]), about["digest"], about["resized"]
        return ScanResult(corrupt=corrupt, digest=digest, resized=resized, pixels=pixels, **arrays)
    except PermissionError:
        return None
    except _DAMAGED as error:
        logging.warning("%s is damaged (%s) and is made again.", entry, error)
        return None


def _read_current(
    entry: pathlib.Path, split: sources.Split, options: ScanOptions
) -> ScanResult | None:
    """Reads an entry if it matches the current images."""
    return None if _is_stale(entry, split) else _read(entry, options)


def _is_stale(entry: pathlib.Path, split: sources.Split) -> bool:
    """Returns whether an entry does not match the current images, judged by a sample.

    A changed file has another time of change, and so another entry. But some file systems do not
    store this time, and images mounted in place of others may have the same time.
    """
    try:
        with (entry / _INDEX).open("rb") as file, np.load(file, allow_pickle=False) as index:
            kept, labels, digests = (index[name] for name in ("kept", "labels", "digests"))
    except _DAMAGED:  # `_read` reports it.
        return False
    stale = not _agrees(split, kept, labels, digests)
    if stale:
        logging.info("%s does not match the images any more, and is made again.", entry)
    return stale


def _agrees(
    split: sources.Split, kept: np.ndarray, labels: np.ndarray, digests: np.ndarray
) -> bool:
    for i in np.unique(np.linspace(0, len(kept) - 1, _SAMPLES).astype(int)) if len(kept) else ():
        try:
            image, label = split.read(int(kept[i]))
        except decoding.CorruptImageError:
            return False
        stored = digests[i].tobytes()  # Earlier versions stored the first 8 bytes.
        if label != labels[i] or scan.digest(image)[: len(stored)] != stored:
            return False
    return True


def _mapped(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.stat().st_size != math.prod(shape):
        raise ValueError(f"{path.stat().st_size} bytes of pixels, not {math.prod(shape)}")
    if not math.prod(shape):  # An empty file cannot be mapped.
        return np.zeros(shape, np.uint8)
    return np.memmap(path, np.uint8, mode="r", shape=shape)
