"""Files that are written whole or not at all."""

import contextlib
import errno
import fcntl
import os
import pathlib
import stat
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


def open_own(path: pathlib.Path) -> BinaryIO:
    """Opens a file that this program alone writes, to read and to write; made if it is not there.

    Raises:
        OSError: If it cannot be opened; or is a link, or no regular file: what lies behind it is
            another's, and is left as it is.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "a link, which is not followed: remove it", str(path)) from None
    if not _is_plain(os.fstat(descriptor)):
        os.close(descriptor)
        raise OSError(errno.EMLINK, "a link, or no plain file: remove it", str(path))
    return os.fdopen(descriptor, "r+b")


def is_own(path: pathlib.Path) -> bool:
    """Whether there is a file that `open_own` opens."""
    with contextlib.suppress(OSError):
        return _is_plain(path.lstat())
    return False


def _is_plain(found: os.stat_result) -> bool:
    """Whether it is a regular file without a second name."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def cache() -> pathlib.Path:
    """Folder of what can be made again: that of REMEM_CACHE, or remem_jax in XDG_CACHE_HOME's."""
    if os.environ.get("REMEM_CACHE"):
        return pathlib.Path(os.environ["REMEM_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "remem_jax"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())
