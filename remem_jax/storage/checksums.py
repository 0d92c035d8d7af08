"""Folders that are renamed when they are complete, with checksums that detect later damage."""

import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from remem_jax.storage import files

MANIFEST = "manifest.json"
_DAMAGED = "damaged-"
_SAVING, _OLD = ".saving", ".old"
_UNNAMED = (_SAVING, _OLD, ".orbax-checkpoint-tmp")  # The last is orbax's suffix while it writes.


class DamagedError(Exception):
    """A folder has changed since it was written; the message names the file and the damage."""


def partial(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path at which to write a folder before it is complete."""
    return folder.with_name(folder.name + _SAVING)


def finish(folder: pathlib.Path, note: Any) -> None:
    """Completes a partial folder: writes its manifest, and renames it, in place of an old one.

    The manifest lists the files with their sizes and SHA-256. It is written atomically: one line of
    JSON, and one with the SHA-256 of the first, to detect damage of the manifest.

    Args:
        folder: Final path of the folder.
        note: JSON values to store in the manifest.

    Raises:
        OSError: If a file cannot be read, or the manifest cannot be written.
    """
    _write_manifest(partial(folder), note)
    if folder.exists():
        discard(folder)
    partial(folder).rename(folder)


def discard(folder: pathlib.Path) -> None:
    """Renames a folder, atomically, so that `clear` removes it."""
    folder.rename(folder.with_name(folder.name + _OLD))


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames a damaged folder, so that it is kept but ignored; returns its new path."""
    names = (f"{_DAMAGED}{folder.name}{f'-{i}' if i else ''}" for i in itertools.count())
    paths = (folder.with_name(name) for name in names)
    return folder.rename(next(path for path in paths if not path.exists()))


def is_unusable(path: pathlib.Path) -> bool:
    """Returns whether a path is that of a folder that is incomplete, discarded or set aside."""
    return path.suffix in _UNNAMED or path.name.startswith(_DAMAGED)


def clear(directory: pathlib.Path, name: str = "") -> None:
    """Removes incomplete and discarded folders in a directory: those of one name, or all."""
    for path in directory.iterdir():
        if path.suffix in _UNNAMED and path.name.startswith(name and f"{name}."):
            shutil.rmtree(path)


def _write_manifest(folder: pathlib.Path, note: Any) -> None:
    listed = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _digest(path)]
        for path in sorted(_files(folder))
    }
    line = json.dumps({"files": listed, "note": note}).encode()
    with files.replacing(folder / MANIFEST) as file:
        file.write(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")


def check(folder: pathlib.Path) -> Any:
    """Verifies all files of a folder, and returns its note.

    Files that are not in the manifest are ignored.

    Raises:
        DamagedError: If the manifest, or a file in it, has changed since it was written.
    """
    manifest = _read_manifest(folder / MANIFEST)
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        try:
            actual = path.stat().st_size
            if actual != size:
                raise DamagedError(f"{path} has {actual} bytes instead of {size}")
            if _digest(path) != digest:
                raise DamagedError(f"{path} has other bytes than were written (SHA-256)")
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    return manifest["note"]


def read_note(folder: pathlib.Path) -> Any:
    """Returns the note of a folder without verifying its files.

    Raises:
        DamagedError: If the manifest has changed since it was written.
    """
    return _read_manifest(folder / MANIFEST)["note"]


def listed(folder: pathlib.Path) -> set[str]:
    """Returns the relative names of all files that were written, including the manifest.

    Raises:
        DamagedError: If the manifest has changed since it was written.
    """
    return {MANIFEST, *_read_manifest(folder / MANIFEST)["files"]}


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        line, _, digest = path.read_bytes().partition(b"\n")
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing: what it lists was never finished") from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    if digest != hashlib.sha256(line).hexdigest().encode() + b"\n":
        raise DamagedError(f"{path} has other bytes than were written (SHA-256)")
    return json.loads(line)


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST and path.suffix != ".partial":
            yield path


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
