"""Finds what the folder of a run, and the cache, hold that nothing needs any more; removes it.

Only names that this package writes are found, in folders that are marked as its own. Links are
neither followed nor removed.
"""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from remem_jax.storage import checksums, locks, results, workdir
from remem_jax.storage.selected import teacher as teacher_file

_STAGES = ("teachers", "students", "information")  # Folders of stages that are trained.
_CHECKPOINTS, _BEST, _LOCK = "checkpoints", "best", "lock"
# Of decoded images, and what was found among them; see `data.cache`.
_ENTRY = re.compile(r"[0-9a-f]{24}(\.partial)?|duplicates_[0-9a-f]{24}\.npy")
_OUTPUTS = re.compile(r"[0-9a-f]{16}")  # Of stored outputs; see `storage.outputs`.
_COMPILED = re.compile(r".+-(cache|atime)")  # Files of JAX.
# Kinds of files, as users read them.
CHECKPOINTS = "checkpoints of stages that are finished"
STUDENTS = "copies of students that were tested, or not selected"
TEACHERS = "teachers that no selected student has"
SELECTED = "copies of the selected teachers, which are in selected/"
TRACES = "traces of --config.profile"
IMAGES = "decoded images, which the next run decodes again"
OUTPUTS = "stored outputs of teachers, which the next run computes again"
PROGRAMS = "compiled programs, which the next run compiles again"


class Item(NamedTuple):
    """Files and folders of one kind that can be removed.

    Attributes:
        kind: What they are, such as `STUDENTS`.
        paths: The files and folders.
        bytes: Their size on the disk.
    """

    kind: str
    paths: tuple[pathlib.Path, ...]
    bytes: int


def size(path: pathlib.Path) -> int:
    """Returns the bytes that a file, or a folder with all that is in it, takes on the disk."""
    total = 0
    for entry in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        with contextlib.suppress(OSError):
            total += entry.lstat().st_blocks * 512  # Sparse files take less than their length.
    return total


def of_run(directory: pathlib.Path, *, everything: bool = False) -> list[Item]:
    """Returns what the folder of a run holds that it does not need.

    After `remove`, the report, predictions and exports work as before, and so does the command that
    made the run: it trains nothing again. A run that is not finished goes on.

    Args:
        directory: The folder.
        everything: Whether to include the selected teachers, with which a run with a time budget
            would train longer, and the traces of a profile.
    """
    record = results.read(directory / "results.json")
    found = {CHECKPOINTS: [*_checkpoints(directory)]}
    if record is not None and "methods" in record and not _goes_on(directory, record):
        before = (directory / "results.json").stat().st_mtime
        keeps = "budget" in record and not everything
        found |= {
            STUDENTS: [*_students(directory, record, before)],
            TEACHERS: [*_teachers(directory, record, before, selected=False)],
            SELECTED: [] if keeps else [*_teachers(directory, record, before, selected=True)],
        }
    if everything:
        found[TRACES] = [directory / "profile"]
    return _items(found)


def usage(directory: pathlib.Path) -> dict[str, int]:
    """Returns the "bytes" that the folder of a run takes, and those that are "removable"."""
    removable = sum(item.bytes for item in of_run(directory))
    return {"bytes": size(directory), "removable": removable}


def of_cache(folder: pathlib.Path) -> list[Item]:
    """Returns what the cache holds, except weights, which would be downloaded again.

    Args:
        folder: The cache's folder; see `files.cache`.
    """
    return _items(
        {
            IMAGES: _named(folder / "data", _ENTRY),
            OUTPUTS: _named(folder / "outputs", _OUTPUTS),
            PROGRAMS: _named(folder / "compiled", _COMPILED),
        }
    )


def runs(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of runs at a path: of one run, or of the trials of a study."""
    if not workdir.is_ours(directory):
        return []
    trials = directory / "trials"
    inside = sorted(trials.iterdir()) if trials.is_dir() else []
    return [directory, *(path for path in inside if path.is_dir() and workdir.is_ours(path))]


def remove(items: Iterable[Item]) -> int:
    """Removes items; returns the bytes that were freed.

    What another process is just writing, or cannot be removed, stays.
    """
    freed = 0
    for path in (path for item in items for path in item.paths):
        taken = size(path)
        with contextlib.suppress(OSError), _unused(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            freed += taken
    return freed


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run while the block runs.

    Raises:
        BlockingIOError: If the run is running.
    """
    with locks.held(directory / _LOCK):
        yield


@contextlib.contextmanager
def _unused(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock of an entry of the cache, if it has one, and removes it at the end."""
    lock = path.with_suffix(".lock")
    if not lock.is_file():
        yield
        return
    with locks.held(lock, remove=True):
        yield


def _items(found: Mapping[str, Collection[pathlib.Path]]) -> list[Item]:
    """Returns an item for each kind of which there is something."""
    real = {
        kind: tuple(path for path in paths if path.exists() and not path.is_symlink())
        for kind, paths in found.items()
    }
    return [Item(kind, paths, sum(map(size, paths))) for kind, paths in real.items() if paths]


def _goes_on(directory: pathlib.Path, record: Mapping[str, Any]) -> bool:
    """Returns whether a run with a time budget has trained more since its results were written."""
    budget = results.read(directory / "budget.json")
    return budget is not None and len(budget["stages"]) != len(record["budget"]["stages"])


def _checkpoints(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields checkpoints of stages with a result, and partial or damaged ones of others."""
    for stage in _STAGES:
        for path in _folders(directory / stage, _CHECKPOINTS):
            if any((path.parent / f"{name}.json").exists() for name in ("result", "diverged")):
                yield path
            else:
                yield from (each for each in path.iterdir() if checksums.is_unusable(each))


def _students(
    directory: pathlib.Path, record: Mapping[str, Any], before: float
) -> Iterator[pathlib.Path]:
    """Yields the students of methods whose selected ones are saved."""
    for row in record["methods"]:
        name = row["method"]
        if (directory / "selected" / f"{name}.json").exists():
            for path in _folders(directory / "students" / name, _BEST):
                if path.stat().st_mtime <= before:
                    yield path


def _teachers(
    directory: pathlib.Path, record: Mapping[str, Any], before: float, *, selected: bool
) -> Iterator[pathlib.Path]:
    """Yields the parameters of teachers: of those of the selected students, or of all others."""
    for row in record["methods"]:
        if not row.get("teacher_part"):  # None without a teacher, and in runs of early versions.
            continue
        name, folder = row["method"], directory / "teachers" / row["method"]
        chosen = directory / row["teacher_part"] / f"step_{row['selected']['teacher_step']}"
        is_saved = teacher_file(directory, name).exists()
        for path in _folders(folder, "params"):
            is_chosen = path.parent == chosen
            wanted = is_chosen and is_saved if selected else not is_chosen
            if wanted and path.stat().st_mtime <= before:
                yield path


def _folders(directory: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Returns the folders of a name inside another one, at any depth."""
    found = directory.rglob(name) if directory.is_dir() and not directory.is_symlink() else ()
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _named(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[pathlib.Path]:
    """Returns what a folder contains under names of a form."""
    listed = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208  Names only.
    return [folder / name for name in listed if pattern.fullmatch(name)]
