"""Finds the images below a folder, and counts by kind what it passes over."""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from remem_jax.data.images import formats

# Kinds of what is passed over, beside suffixes.
HIDDEN = "hidden"
LEFTOVER = "left by other programs"
DANGLING = "link to nothing"
IRREGULAR = "not a regular file"
LOOP = "link to a folder that was seen"
RUN = "folder of a run"
REPEATED = "repeated"
OUTSIDE = "outside class folders"
BESIDE = "folder beside the splits"
_UNREMARKABLE = {HIDDEN, LEFTOVER}  # Nobody misses them.

# What file servers, archives and desktops leave in folders; of any case.
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
_RUN_FILES = {"inputs.json", "metrics.jsonl", "study.json"}  # Beside its config.json.
_SUFFIX = re.compile(r"\.(?=\w*[a-z])[a-z0-9_]{1,8}")
_SHOWN = 12  # Kinds in a line.


class Entry(NamedTuple):
    """A folder, or a regular file that may be an image.

    Attributes:
        name: Of the entry alone.
        path: With that of the folder that was listed.
        found: What `os.stat` says of it, or of what it links to; None where nothing may be said.
    """

    name: str
    path: str
    found: os.stat_result | None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return self.found is not None and stat.S_ISDIR(self.found.st_mode)


def entries(place: str | os.PathLike[str], skipped_files: Counter[str]) -> list[Entry]:
    """Folders and image files in a folder, in an order that no file system changes.

    Raises:
        OSError: If the folder cannot be listed.
    """
    with os.scandir(place) as found:
        listed = sorted(found, key=lambda entry: entry.name)
    taken = []
    for entry in listed:
        kind, of = _kind(entry)
        if kind:
            skipped_files[kind] += 1
        else:
            taken.append(Entry(entry.name, entry.path, of))
    return taken


def images(
    folder: Entry,
    skipped_files: Counter[str],
    *,
    unlisted: Callable[[OSError], object],
    seen: set[tuple[int, int]] | None = None,
    once: bool = False,
) -> Iterator[Entry]:
    """Images in a folder and in those below it, folder by folder.

    A folder that links to one that it lies in is passed over, as are folders of runs below.

    Args:
        folder: Where to look.
        skipped_files: Counts what is not taken, by kind.
        unlisted: Called with the error of a folder that cannot be listed.
        seen: Folders that it lies in; see `identity_of`.
        once: Whether a folder to which several links lead is looked at once, not for each.
    """
    seen = set() if seen is None else seen
    identity = identity_of(folder)
    if identity in seen:
        skipped_files[LOOP] += 1
        return
    try:
        here = entries(folder.path, skipped_files)
    except OSError as error:
        unlisted(error)
        return
    seen.add(identity)
    for entry in here:
        if not entry.is_folder:
            yield entry
        elif is_run(entry.path):
            skipped_files[RUN] += 1
        else:
            yield from images(entry, skipped_files, unlisted=unlisted, seen=seen, once=once)
    if not once:
        seen.discard(identity)


def entry_of(place: str | os.PathLike[str]) -> Entry:
    """A folder that is there, to begin at."""
    path = os.fspath(place)
    return Entry(os.path.basename(path), path, os.stat(path))  # noqa: PTH116, PTH119


def identity_of(folder: Entry) -> tuple[int, int]:
    """Device and inode of a folder."""
    if folder.found is None:
        raise ValueError(f"{folder.path} is no folder.")
    return folder.found.st_dev, folder.found.st_ino


def is_run(place: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a run or study of ours, whose figures are no data."""
    names = {name for name in ("config.json", *_RUN_FILES) if _is_file(place, name)}
    return "config.json" in names and len(names) > 1


def describe_skipped(skipped_files: Mapping[str, int], empty_classes: Sequence[str]) -> str:
    """What was passed over, in words; "" where nothing was."""
    said = []
    if skipped_files:
        count = sum(skipped_files.values())
        kinds = [f"{kind}: {skipped_files[kind]:,}" for kind in sorted(skipped_files)]
        if len(kinds) > _SHOWN:
            kinds[_SHOWN:] = [f"{len(kinds) - _SHOWN} other kinds"]
        files = "file" if count == 1 else "files"
        said.append(f"{count:,} {files} passed over ({', '.join(kinds)})")
    if empty_classes:
        several = len(empty_classes) > 1
        names = ", ".join(map(printable, empty_classes[:_SHOWN]))
        more = f" and {len(empty_classes) - _SHOWN} more" if len(empty_classes) > _SHOWN else ""
        said.append(
            f"the class{'es' * several} {names}{more} {'have' if several else 'has'} no image"
        )
    return "; ".join(said)


def is_remarkable(skipped_files: Mapping[str, int]) -> bool:
    """Whether somebody may have meant to use what was passed over."""
    return not skipped_files.keys() <= _UNREMARKABLE


def printable(name: str) -> str:
    """A name as it is, but for characters that do not print."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _kind(entry: os.DirEntry[str]) -> tuple[str, os.stat_result | None]:
    """Why an entry is passed over, or "" and what it is."""
    if entry.name.casefold() in _LEFTOVERS or entry.name.startswith("._"):
        return LEFTOVER, None
    if entry.name.startswith("."):
        return HIDDEN, None
    found = None
    try:
        found = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return DANGLING, None
        # Else it is taken, for who reads it to say what is wrong.
    if found and stat.S_ISDIR(found.st_mode):
        return "", found
    regular = found is None or stat.S_ISREG(found.st_mode)
    return _suffix(entry.name) if regular else IRREGULAR, found


def _suffix(name: str) -> str:
    """The suffix of a file that is no image, or ""."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if suffix in formats.SUFFIXES:
        return ""
    if not suffix:
        return "no suffix"
    return suffix if _SUFFIX.fullmatch(suffix) else "other suffixes"


def _is_file(place: str | os.PathLike[str], name: str) -> bool:
    return os.path.isfile(os.path.join(place, name))  # noqa: PTH113, PTH118
