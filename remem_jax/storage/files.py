"""Atomic writes of files, and the folder of the cache."""

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
    """Returns advice for a system error by its number (`OSError.errno`)."""
    return next((text for text, numbers in _ADVICE.items() if number in numbers), "mend it")


def is_closed(error: OSError) -> bool:
    """Returns whether an error means that the user may not write: no permission, or read-only."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file to write, which replaces `path` when the block ends without an error.

    A kill at any moment leaves either the old file or the new one. Several processes write a file
    one after another; the content of the last one remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    file = _open_exclusively(partial)
    if file is None:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "r+b")
    with file:
        file.truncate()
        yield file
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)


def _open_exclusively(path: pathlib.Path) -> BinaryIO | None:
    """Opens and locks a file, after waiting for other processes.

    Returns None if that is impossible: the file system does not lock, or `path` is a link or not
    writable. The caller then uses a unique name, which a kill would leave behind.
    """
    while True:
        try:
            file = open_private(path)
        except OSError:
            return None  # A full disk fails for the other name too.
        locked = locks.lock(file)  # Until the file is closed or the process ends.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                if locked:
                    return file
                file.close()
                path.unlink(missing_ok=True)
                return None
        file.close()  # The previous process has renamed it by now.


def open_private(path: pathlib.Path) -> BinaryIO:
    """Opens a file that only this program writes, for reading and writing; creates it if missing.

    Raises:
        OSError: If it cannot be opened, is a link or not a regular file: the target of a link is
            not ours, and is not changed.
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
    """Returns whether there is a file that `open_private` opens."""
    with contextlib.suppress(OSError):
        return _is_plain(path.lstat())
    return False


def _is_plain(status: os.stat_result) -> bool:
    """Returns whether it is a regular file without other hard links."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


def cache() -> pathlib.Path:
    """Returns the cache's folder: REMEM_CACHE, or remem_jax in XDG_CACHE_HOME or ~/.cache.

    If there is no home folder either, it is a temporary folder that is removed at exit.
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
    """Writes a text file in UTF-8; bytes of file names that are not UTF-8 are escaped."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))
