"""Files that are written whole or not at all."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when the block ends without an error.

    A kill at any moment leaves either the old file or the new one. Several processes may write a
    file at once: one after another does, and what the last one wrote stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with _alone(partial) as file:
        file.truncate()
        yield file
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)


def _alone(path: pathlib.Path) -> BinaryIO:
    """Opens a file that no other process has opened so, when it is there and theirs are gone."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)  # Closing it, or a kill, frees it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # The one before has given it its name by now.


def cache() -> pathlib.Path:
    """Folder of what can be made again: that of REMEM_CACHE, or remem_jax in XDG_CACHE_HOME's."""
    if os.environ.get("REMEM_CACHE"):
        return pathlib.Path(os.environ["REMEM_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "remem_jax"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in UTF-8; of names on disk, escapes what is none."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))
