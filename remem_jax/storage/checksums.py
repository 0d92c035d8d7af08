"""Folders that get their name when they are whole, with checksums that show damage since."""

import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from remem_jax.storage import files

MANIFEST = "manifest.json"
_SAVING, _OLD = ".saving", ".old"
_UNNAMED = (_SAVING, _OLD, ".orbax-checkpoint-tmp")  # The last is orbax's, of what it writes.


class DamagedError(Exception):
    """A folder is not as it was written; the message names the file and what is wrong with it."""


def partial(folder: pathlib.Path) -> pathlib.Path:
    """Where to write what is to become a folder."""
    return folder.with_name(folder.name + _SAVING)


def finish(folder: pathlib.Path, note: Any) -> None:
    """Makes a folder of the partial one, which has all its files, in place of an old one.

    First the files are listed with their sizes and SHA-256. The list is a file among them that
    appears whole or not at all: one line of JSON, and one with the SHA-256 of the first, since a
    list can be damaged too.

    Args:
        folder: The folder.
        note: What else to write down, as JSON has it.

    Raises:
        OSError: If a file cannot be read, or the list not be written.
    """
    _write_manifest(partial(folder), note)
    if folder.exists():
        discard(folder)
    partial(folder).rename(folder)


def discard(folder: pathlib.Path) -> None:
    """Takes a folder's name away, at once, so that `clear` removes it."""
    folder.rename(folder.with_name(folder.name + _OLD))


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames a damaged folder, so that it counts no more and can be looked at; its new name."""
    names = (f"damaged-{folder.name}{f'-{i}' if i else ''}" for i in itertools.count())
    paths = (folder.with_name(name) for name in names)
    return folder.rename(next(path for path in paths if not path.exists()))


def clear(directory: pathlib.Path, name: str = "") -> None:
    """Removes what was not finished, or discarded, in a directory; of one folder, or of all."""
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
    """Reads all files of a folder; the note that was written down with them.

    Files that are not listed are nobody's, and do not count.

    Raises:
        DamagedError: Unless the list and all files in it are as they were written.
    """
    manifest = _read_manifest(folder / MANIFEST)
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedError(f"{path} has {found} bytes instead of {size}")
            if _digest(path) != digest:
                raise DamagedError(f"{path} has other bytes than were written (SHA-256)")
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    return manifest["note"]


def read_note(folder: pathlib.Path) -> Any:
    """The note alone, of a folder that was checked before.

    Raises:
        DamagedError: If the list of files is not as it was written.
    """
    return _read_manifest(folder / MANIFEST)["note"]


def listed(folder: pathlib.Path) -> set[str]:
    """Names of all files that were written, with the list itself; relative, with slashes.

    Raises:
        DamagedError: If the list of files is not as it was written.
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
