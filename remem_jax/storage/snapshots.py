"""Snapshots of a run's folder while the run writes to it."""

import os
import pathlib
import shutil
from collections.abc import Iterator

from remem_jax.storage import checksums

# Not part of a snapshot: they belong to this machine, or are not needed to resume.
LEFT_OUT = ("lock", "copy.json", "profile", "wandb")
_APPENDED = ("metrics.jsonl", "tracked.json", "tensorboard")  # All others are replaced as a whole.
State = dict[str, tuple[int, int, int]]


def state(folder: pathlib.Path) -> State:
    """Returns the complete files of a run that resuming needs, without its logs.

    Returns:
        Inode, size and time of change of each, by its path in the folder. It changes when a
        checkpoint or a stage is complete.
    """
    found = {}
    for path in _files(folder):
        relative = path.relative_to(folder)
        if not _is_appended(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found[relative.as_posix()] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


def take(folder: pathlib.Path, to: pathlib.Path) -> State | None:
    """Makes a copy of a folder as it was at one moment, of hard links where these are possible.

    The run goes on meanwhile: the snapshot counts if the folder was the same before and after.

    Args:
        folder: Folder of the run.
        to: Folder to create, on the same disk; replaced if it exists.

    Returns:
        The state of the folder in the snapshot; None if it changed all the time.
    """
    for _ in range(10):
        before = state(folder)
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        try:
            for path in _files(folder):
                _place(path, to / path.relative_to(folder))
        except FileNotFoundError:
            continue
        if before == state(folder):
            return before
    return None


def _place(path: pathlib.Path, target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _is_appended(path):
        try:
            os.link(path, target)
            return
        except FileNotFoundError:
            raise
        except OSError:  # The file system has no hard links.
            pass
    shutil.copy2(path, target)


def _is_appended(path: pathlib.Path) -> bool:
    return path.name in _APPENDED or path.parent.name in _APPENDED


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for parent, names, files in os.walk(folder):
        here = pathlib.Path(parent)
        names[:] = [
            name
            for name in names
            if not checksums.is_unusable(here / name) and name not in LEFT_OUT
        ]
        for name in files:
            if not name.endswith(".partial") and name not in LEFT_OUT:
                yield here / name
