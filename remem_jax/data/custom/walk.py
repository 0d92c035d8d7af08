"""Finds the images below a folder, and counts the files that it skips by kind."""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from remem_jax.checks import printable
from remem_jax.data.images import formats

# Kinds of skipped files, besides suffixes.
HIDDEN = "hidden"
LEFTOVER = "left by other programs"
DANGLING = "link to nothing"
IRREGULAR = "not a regular file"
LOOP = "link to a folder that was seen"
RUN = "folder of a run"
REPEATED = "repeated"
OUTSIDE = "outside class folders"
BESIDE = "folder beside the splits"
_UNREMARKABLE = {HIDDEN, LEFTOVER}  # Never images that a user meant to use.

# Names, in any case, that file servers, archives and desktops leave in folders.
_LEFTOVERS = {
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "~snapshot",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "network trash folder",
    "recycler",
    "system volume information",
    "temporary items",
    "thumbs.db",
}
# Files of which a run or study has at least one, besides config.json.
_RUN_FILES = {"inputs.json", "metrics.jsonl", "study.json"}
_SUFFIX = re.compile(r"\.(?=\w*[a-z])[a-z0-9_]{1,8}")
_LISTED = 12  # Kinds, or classes, listed in a line.


class Entry(NamedTuple):
    """A folder, or a regular file that may be an image.

    Attributes:
        name: File name.
        path: Path, which starts with that of the listed folder.
        status: Its `os.stat`, links followed; None if it cannot be read.
    """

    name: str
    path: str
    status: os.stat_result | None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


def entries(place: str | os.PathLike[str], skipped_files: Counter[str]) -> list[Entry]:
    """Lists folders and image files in a folder, sorted by name.

    Raises:
        OSError: If the folder cannot be listed.
    """
    with os.scandir(place) as scanned:
        listed = sorted(scanned, key=lambda entry: entry.name)
    kept = []
    for entry in listed:
        kind, status = _kind(entry)
        if kind:
            skipped_files[kind] += 1
        else:
            kept.append(Entry(entry.name, entry.path, status))
    return kept


def images(
    folder: Entry,
    skipped_files: Counter[str],
    *,
    unlisted: Callable[[OSError], object],
    visited: set[tuple[int, int]] | None = None,
    once: bool = False,
) -> Iterator[Entry]:
    """Yields the images in a folder and its subfolders, folder by folder.

    Links to a parent folder, and folders of runs, are skipped.

    Args:
        folder: The folder.
        skipped_files: Counter of skipped files by kind; updated.
        unlisted: Called with the error of a folder that cannot be listed.
        visited: Identities of the parent folders, from `identity_of`; updated.
        once: Whether a folder that several links point to is listed only once.
    """
    visited = set() if visited is None else visited
    identity = identity_of(folder)
    if identity in visited:
        skipped_files[LOOP] += 1
        return
    try:
        children = entries(folder.path, skipped_files)
    except OSError as error:
        unlisted(error)
        return
    visited.add(identity)
    for entry in children:
        if not entry.is_folder:
            yield entry
        elif is_run(entry.path):
            skipped_files[RUN] += 1
        else:
            yield from images(entry, skipped_files, unlisted=unlisted, visited=visited, once=once)
    if not once:
        visited.discard(identity)


def entry_of(place: str | os.PathLike[str]) -> Entry:
    """Returns the entry of an existing folder."""
    path = os.fspath(place)
    return Entry(os.path.basename(path), path, os.stat(path))  # noqa: PTH116, PTH119


def identity_of(folder: Entry) -> tuple[int, int]:
    """Returns device and inode of a folder."""
    if folder.status is None:
        raise ValueError(f"{folder.path} is no folder.")
    return folder.status.st_dev, folder.status.st_ino


def is_run(place: str | os.PathLike[str]) -> bool:
    """Returns whether a folder is that of a run or study, whose figures are not data."""
    names = {name for name in ("config.json", *_RUN_FILES) if _is_file(place, name)}
    return "config.json" in names and len(names) > 1


def describe_skipped(skipped_files: Mapping[str, int], empty_classes: Sequence[str]) -> str:
    """Describes skipped files and empty classes in words; "" if there are none."""
    phrases = []
    if skipped_files:
        count = sum(skipped_files.values())
        kinds = [f"{kind}: {skipped_files[kind]:,}" for kind in sorted(skipped_files)]
        if len(kinds) > _LISTED:
            kinds[_LISTED:] = [f"{len(kinds) - _LISTED} other kinds"]
        files = "file" if count == 1 else "files"
        phrases.append(f"{count:,} {files} skipped ({', '.join(kinds)})")
    if empty_classes:
        several = len(empty_classes) > 1
        names = ", ".join(map(printable, empty_classes[:_LISTED]))
        more = f" and {len(empty_classes) - _LISTED} more" if len(empty_classes) > _LISTED else ""
        phrases.append(
            f"the class{'es' * several} {names}{more} {'have' if several else 'has'} no image"
        )
    return "; ".join(phrases)


def is_remarkable(skipped_files: Mapping[str, int]) -> bool:
    """Returns whether a user may have meant to use some of the skipped files."""
    return not skipped_files.keys() <= _UNREMARKABLE


def _kind(entry: os.DirEntry[str]) -> tuple[str, os.stat_result | None]:
    """Returns why an entry is skipped, or "", and its `os.stat`."""
    if entry.name.casefold() in _LEFTOVERS or entry.name.startswith("._"):
        return LEFTOVER, None
    if entry.name.startswith("."):
        return HIDDEN, None
    status = None
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return DANGLING, None
        # Otherwise it is kept, and reading it reports the error.
    if status and stat.S_ISDIR(status.st_mode):
        return "", status
    regular = status is None or stat.S_ISREG(status.st_mode)
    return _suffix(entry.name) if regular else IRREGULAR, status


def _suffix(name: str) -> str:
    """Returns the suffix of a file that is not an image, or "" for an image."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if suffix in formats.SUFFIXES:
        return ""
    if not suffix:
        return "no suffix"
    return suffix if _SUFFIX.fullmatch(suffix) else "other suffixes"


def _is_file(place: str | os.PathLike[str], name: str) -> bool:
    return os.path.isfile(os.path.join(place, name))  # noqa: PTH113, PTH118
