"""Where exports and predictions go: only what remem_jax made there before is ever replaced.

Beside an export lies its record, PATH.json, with a hash of what it describes. What is there without
such a record is somebody else's: it is refused before work starts, and never removed.
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

# By which the folder of a run or a study is known, also one of an older version.
_MARKS = (workdir.MARK, "results.json", "inputs.json", "study.json")


def record_path(path: pathlib.Path) -> pathlib.Path:
    """Where the record of an export lies: what it is, and how it was checked."""
    return path.with_name(f"{path.name}.json")


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """The record of an export.

    Raises:
        SettingError: If it is not there, or is of something else.
    """
    beside = record_path(path)
    try:
        found = _records(beside)
        mine = [one for one in found if _describes(one, path)]
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} needs {beside}, which cannot be read: {error}.") from error
    require(
        len(mine) > 0,
        f"{beside} is not the record of what is in {path}: export it again, to another place.",
    )
    return mine[0]


def require_replaceable(path: pathlib.Path, *, folder: bool) -> None:
    """Raises `SettingError` unless an export may be written there: to be called before work.

    Args:
        path: What the user gave, or the place in RUN/export.
        folder: Whether the export is a folder.
    """
    with _told(path):
        _require_room(path, folder=folder)
        if path.exists():
            require(_is_ours(path), _foreign(path, "no export that remem_jax wrote"))
        record = record_path(path)
        _require_outside_of_runs(record)
        if os.path.lexists(record):
            known = not record.is_symlink() and record.is_file() and _is_record(record)
            require(known, _foreign(record, "no record of an export"))


def require_writable_text(path: pathlib.Path, is_ours: Callable[[str], bool]) -> None:
    """Raises `SettingError` unless a text may be written there: to be called before work.

    Args:
        path: What the user gave.
        is_ours: Tells by how it begins whether a file that is there may be replaced.
    """
    with _told(path):
        _require_room(path, folder=False)
        if path.exists() and path.stat().st_size:
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                head = file.read(10_000)
            require(is_ours(head), _foreign(path, "no file of predictions"))


@contextlib.contextmanager
def workspace(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside a path, for what is to be put there; removed in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix=".remem_jax.", suffix=".unfinished", dir=path.parent)
    try:
        yield pathlib.Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put(made: pathlib.Path, path: pathlib.Path, record: dict[str, Any]) -> dict[str, Any]:
    """Gives an export and its record their names, in place of an export that was there.

    Each name changes by one rename. While the export and its record cannot change together, the
    record lists both; which one holds is told by the hash. So after a kill at any moment there is
    the old export or the new one (of a folder, for a moment neither has the name), and never a
    record that says something wrong.

    Args:
        made: The export, in a `workspace` of the path.
        path: Its place.
        record: What there is to say of it.

    Returns:
        The record with the hash.

    Raises:
        SettingError: If something else has come to the place since it was looked at.
    """
    require_replaceable(path, folder=made.is_dir())
    record = {**record, "sha256": digest(made)}
    beside, new = record_path(path), made.with_name("record.json")
    there = path.exists()
    if there:
        before = [one for one in _records(beside) if _describes(one, path)]
        results.write(new, {"either": [record, *before]})
    else:
        results.write(new, record)
    new.replace(beside)
    try:
        _swap(made, path)
    except BaseException:  # A signal too.
        if not path.exists():
            beside.unlink()
        raise
    if there:
        results.write(new, record)
        new.replace(beside)
    return record


def digest(path: pathlib.Path) -> str:
    """Hash of a file's bytes; of a folder, of the list of its files and their hashes."""
    return results.digest(path / checksums.MANIFEST if path.is_dir() else path)


def _swap(made: pathlib.Path, path: pathlib.Path) -> None:
    """Renames what was made to its place."""
    if not made.is_dir():
        made.replace(path)
        return
    aside = made.with_name("before")
    try:
        if path.exists():
            path.rename(aside)
        made.rename(path)
    except BaseException:  # A signal too.
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise


def _records(beside: pathlib.Path) -> list[dict[str, Any]]:
    """The records in a file, of which one holds; none where it is no file of records.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON.
    """
    content = json.loads(beside.read_text(encoding="utf-8"))
    several = content.get("either") if isinstance(content, dict) else None
    found = several if isinstance(several, list) else [content]
    return [
        one
        for one in found
        if isinstance(one, dict) and isinstance(one.get("metadata"), dict) and "check" in one
    ]


def _is_record(beside: pathlib.Path) -> bool:
    try:
        return len(_records(beside)) > 0
    except (OSError, ValueError):
        return False


def _is_ours(path: pathlib.Path) -> bool:
    """Whether an export is at a path, and nothing else in its folder."""
    try:
        if path.is_dir():
            listed = checksums.listed(path)
            if {one.relative_to(path).as_posix() for one in _inside(path)} != listed:
                return False
        return any(_describes(one, path) for one in _records(record_path(path)))
    except (OSError, ValueError, checksums.DamagedError):
        return False


def _describes(record: dict[str, Any], path: pathlib.Path) -> bool:
    """Whether a record is of what is at a path; old ones have no more than its size.

    Raises:
        OSError: If it cannot be read.
    """
    if "sha256" in record:
        return record["sha256"] == digest(path)
    return record.get("bytes", size(path)) == size(path)


def size(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in (_inside(path) if path.is_dir() else [path]))


def _inside(folder: pathlib.Path) -> list[pathlib.Path]:
    """What is in a folder but for folders that are not empty; links as themselves."""
    return [
        one
        for one in folder.rglob("*")
        if one.is_symlink() or not one.is_dir() or not any(one.iterdir())
    ]


def _require_room(path: pathlib.Path, *, folder: bool) -> None:
    """Raises unless there is nothing but a file, or a folder, where one can be written.

    Links and devices are refused too.
    """
    require(folder or not path.is_dir(), f"{path} is a folder; set --out to a file.")
    _require_outside_of_runs(path)
    if os.path.lexists(path):
        mode = path.lstat().st_mode
        plain = stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)
        require(plain, _foreign(path, f"no {'folder' if folder else 'regular file'}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK)
    require(writable, f"{path.parent} may not be written to; set --out to another place.")


def _require_outside_of_runs(path: pathlib.Path) -> None:
    """Raises for a place that belongs to the run or the study in whose folder it lies."""
    place = path.parent.resolve() / path.name
    for folder in place.parents:
        if not any((folder / name).is_file() for name in _MARKS):
            continue
        first, *below = place.relative_to(folder).parts
        own = first in (*workdir.OURS, "export") or first.startswith("students_")
        require(
            not own or (first == "export" and len(below) > 0),
            f"{path} is a place of the run in {folder}; set --out to another one.",
        )


def _foreign(path: pathlib.Path, what: str) -> str:
    return f"{path} is there and is {what}: it stays; set --out to another place."


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: pathlib.Path, error: OSError) -> SettingError:
    """What a user is told where a file cannot be written."""
    return SettingError(
        f"{path} cannot be written ({error.strerror or error}): {files.advice(error.errno)}, "
        "or set --out to another place."
    )
