"""Writes exports and predictions to their paths, and replaces only earlier ones.

Beside an export is its record, PATH.json, with a hash of the export. A file without such a record
was not written by remem_jax: it is rejected before work starts, and never removed.
"""

import contextlib
import json
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from remem_jax.checks import SettingError, require
from remem_jax.storage import checksums, files, results, workdir

# Files that identify the folder of a run or a study, also of an older version.
_MARKS = (workdir.MARK, "results.json", "inputs.json", "study.json")


def record_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the record of an export: its description and the result of its check."""
    return path.with_name(f"{path.name}.json")


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """Reads the record of an export.

    Raises:
        SettingError: If it is missing or describes something else.
    """
    record_file = record_path(path)
    try:
        records = _records(record_file)
        matching = [record for record in records if _describes(record, path)]
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} needs {record_file}, which cannot be read: {error}.") from error
    require(
        len(matching) > 0,
        f"{record_file} is not the record of the content of {path}: export it again, to another "
        "place.",
    )
    return matching[0]


def require_replaceable(path: pathlib.Path, *, folder: bool) -> None:
    """Raises `SettingError` unless an export may be written to a path; to be called before work.

    Args:
        path: Path given by the user, or the default in RUN/export.
        folder: Whether the export is a folder.
    """
    with _setting_errors(path):
        _require_usable(path, folder=folder)
        if path.exists():
            require(_is_ours(path), _foreign(path, "not an export that remem_jax wrote"))
        record = record_path(path)
        _require_outside_of_runs(record)
        if os.path.lexists(record):
            is_record = not record.is_symlink() and record.is_file() and _is_record(record)
            require(is_record, _foreign(record, "not the record of an export"))


def require_writable_text(path: pathlib.Path, is_ours: Callable[[str], bool]) -> None:
    """Raises `SettingError` unless a text may be written to a path; to be called before work.

    Args:
        path: Path given by the user.
        is_ours: Returns whether an existing file, given its beginning, may be replaced.
    """
    with _setting_errors(path):
        _require_usable(path, folder=False)
        if path.exists() and path.stat().st_size:
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                head = file.read(10_000)
            require(is_ours(head), _foreign(path, "not a file of predictions"))


@contextlib.contextmanager
def workspace(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Creates a temporary folder beside a path, for files that are moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix=".remem_jax.", suffix=".unfinished", dir=path.parent)
    try:
        yield pathlib.Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put(made: pathlib.Path, path: pathlib.Path, record: dict[str, Any]) -> dict[str, Any]:
    """Moves an export and its record to their paths; replaces an earlier export.

    Each is renamed once. Because both cannot be renamed at the same moment, the record meanwhile
    lists the old and the new export; the hash identifies the valid one. So after a kill at any
    moment there is the old export or the new one (a folder may briefly be missing), and never a
    wrong record.

    Args:
        made: The export, in a `workspace` of the path.
        path: Its final path.
        record: Its record.

    Returns:
        The record with the hash.

    Raises:
        SettingError: If another file has appeared at the path meanwhile.
    """
    require_replaceable(path, folder=made.is_dir())
    record = {**record, "sha256": digest(made)}
    record_file, new = record_path(path), made.with_name("record.json")
    is_replaced = path.exists()
    if is_replaced:
        earlier = [old for old in _records(record_file) if _describes(old, path)]
        results.write(new, {"either": [record, *earlier]})
    else:
        results.write(new, record)
    new.replace(record_file)
    try:
        _swap(made, path)
    except BaseException:  # Also a signal.
        if not path.exists():
            record_file.unlink()
        raise
    if is_replaced:
        results.write(new, record)
        new.replace(record_file)
    return record


def digest(path: pathlib.Path) -> str:
    """Returns the hash of a file, or of the manifest of a folder."""
    return results.digest(path / checksums.MANIFEST if path.is_dir() else path)


def _swap(made: pathlib.Path, path: pathlib.Path) -> None:
    """Renames an export to its final path."""
    if not made.is_dir():
        made.replace(path)
        return
    aside = made.with_name("before")
    try:
        if path.exists():
            path.rename(aside)
        made.rename(path)
    except BaseException:  # Also a signal.
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise


def _records(record_file: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records in a file, of which one is valid; none if it is not a file of records.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON.
    """
    content = json.loads(record_file.read_text(encoding="utf-8"))
    alternatives = content.get("either") if isinstance(content, dict) else None
    records = alternatives if isinstance(alternatives, list) else [content]
    return [
        item
        for item in records
        if isinstance(item, dict) and isinstance(item.get("metadata"), dict) and "check" in item
    ]


def _is_record(record_file: pathlib.Path) -> bool:
    try:
        return len(_records(record_file)) > 0
    except (OSError, ValueError):
        return False


def _is_ours(path: pathlib.Path) -> bool:
    """Returns whether a path is an export of ours; a folder must contain nothing else."""
    try:
        if path.is_dir():
            listed = checksums.listed(path)
            if {entry.relative_to(path).as_posix() for entry in _inside(path)} != listed:
                return False
        return any(_describes(record, path) for record in _records(record_path(path)))
    except (OSError, ValueError, checksums.DamagedError):
        return False


def _describes(record: dict[str, Any], path: pathlib.Path) -> bool:
    """Returns whether a record describes the content of a path; old records have only its size.

    Raises:
        OSError: If it cannot be read.
    """
    if "sha256" in record:
        return record["sha256"] == digest(path)
    return record.get("bytes", size(path)) == size(path)


def size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (_inside(path) if path.is_dir() else [path]))


def _inside(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files, links and empty folders in a folder."""
    return [
        entry
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir() or not any(entry.iterdir())
    ]


def _require_usable(path: pathlib.Path, *, folder: bool) -> None:
    """Raises unless a file, or a folder, can be written to a path.

    Links and devices are rejected too.
    """
    require(folder or not path.is_dir(), f"{path} is a folder; set --out to a file.")
    _require_outside_of_runs(path)
    if os.path.lexists(path):
        mode = path.lstat().st_mode
        same_kind = stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)
        kind = "folder" if folder else "regular file"
        require(same_kind, _foreign(path, f"not a {kind}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK)
    require(writable, f"{path.parent} is not writable; set --out to another place.")


def _require_outside_of_runs(path: pathlib.Path) -> None:
    """Raises for a path that belongs to the run or the study whose folder contains it."""
    place = path.parent.resolve() / path.name
    for folder in place.parents:
        if not any((folder / name).is_file() for name in _MARKS):
            continue
        first, *below = place.relative_to(folder).parts
        is_reserved = first in (*workdir.OURS, "export") or first.startswith("students_")
        require(
            not is_reserved or (first == "export" and len(below) > 0),
            f"{path} is reserved for the run in {folder}; set --out to another place.",
        )


def _foreign(path: pathlib.Path, what: str) -> str:
    return f"{path} exists and is {what}, so it is not replaced; set --out to another place."


@contextlib.contextmanager
def _setting_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: pathlib.Path, error: OSError) -> SettingError:
    """Returns the error for a file that cannot be written."""
    return SettingError(
        f"{path} cannot be written ({error.strerror or error}): {files.advice(error.errno)}, "
        "or set --out to another place."
    )
