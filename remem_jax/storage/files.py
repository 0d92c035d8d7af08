"""Files that are written whole or not at all."""

import atexit
import contextlib
import errno
import functools
import os
import pathlib
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from absl import logging

from remem_jax import checks
from remem_jax.storage import locks

_ADVICE = {
    "make room there": (errno.ENOSPC, errno.EDQUOT),
    "make it yours to write to (owner and permissions)": (errno.EACCES, errno.EPERM),
    "it is mounted read-only": (errno.EROFS,),
    "raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "raise the limit of a file's size (ulimit -f)": (errno.EFBIG,),
    "put it back": (errno.ENOENT, errno.ENOTDIR),
    "see whether its disk or file server works": (
        *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
        *(errno.EREMOTEIO, errno.ENODEV, errno.ENXIO),
    ),
}


def advice(number: int | None) -> str:
    """What to do about an error of the system, by its number (`OSError.errno`)."""
    return next((text for text, numbers in _ADVICE.items() if number in numbers), "mend it")


def is_closed(error: OSError) -> bool:
    """Whether the user may not write to a place: it is another's, or mounted read-only."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when the block ends without an error.

    A kill at any moment leaves either the old file or the new one. Several processes may write a
    file at once: one after another does, and what the last one wrote stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    file = _alone(partial)
    if file is None:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "r+b")
    with file:
        file.truncate()
        yield file
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)


def _alone(path: pathlib.Path) -> BinaryIO | None:
    """Opens a file that no other process has opened so, when it is there and theirs are gone.

    None where that cannot be: the file system does not lock, or what has the name is a link or may
    not be written to. Then a name that nobody else has does as well, but for what a kill leaves.
    """
    while True:
        try:
            file = open_private(path)
        except OSError:
            return None  # A disk that is full says so of the other name too.
        locked = locks.lock(file)  # Closing it, or a kill, frees it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                if locked:
                    return file
                file.close()
                path.unlink(missing_ok=True)
                return None
        file.close()  # The one before has given it its name by now.


def open_private(path: pathlib.Path) -> BinaryIO:
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


def is_private(path: pathlib.Path) -> bool:
    """Whether there is a file that `open_private` opens."""
    with contextlib.suppress(OSError):
        return _is_plain(path.lstat())
    return False


def _is_plain(found: os.stat_result) -> bool:
    """Whether it is a regular file without a second name."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def cache() -> pathlib.Path:
    """Folder of what can be made again: that of REMEM_CACHE, or remem_jax in XDG_CACHE_HOME's.

    Where neither is set and there is no home, it is a temporary one that ends with the process.
    """
    if os.environ.get("REMEM_CACHE"):
        return checks.local_path("REMEM_CACHE", os.environ["REMEM_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return checks.local_path("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"]) / "remem_jax"
    try:
        return pathlib.Path("~/.cache/remem_jax").expanduser()
    except RuntimeError:
        return _temporary()


@functools.cache
def _temporary() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="remem_jax_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logging.warning(
        "There is no home folder: what is cached is in %s, and lost when this command ends; set "
        "REMEM_CACHE.",
        folder,
    )
    return folder


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in UTF-8; of names on disk, escapes what is none."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))
