"""Locks between processes, also where a file system has none.

Files are locked by flock. Network and FUSE file systems may not have it (NFS without a lock daemon,
Lustre without `-o flock`, gcsfuse): there a lock file says which process holds it, which those of
the same machine can tell from one that has died. Those of other machines are not kept out, and a
warning says so.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import IO, Any

from absl import logging

from remem_jax.storage import process

_POLL_SECONDS = 1.0
_ENOTSUPP = 524  # Of the kernel's own NFS and FUSE code; no number that libc can name.
_warned: set[pathlib.Path] = set()


def lock(file: IO[Any]) -> bool:
    """Locks an open file against other processes, until it is closed; a kill frees it.

    Waits for a process that holds it.

    Returns:
        Whether it is locked; False where the file system does not lock.
    """
    return _refused(file, wait=True) is None


@contextlib.contextmanager
def held(path: pathlib.Path, *, waiting: str = "", remove: bool = False) -> Iterator[bool]:
    """Holds a lock file while the block runs; a kill frees it.

    Args:
        path: The file; made if it is not there.
        waiting: What to log if another process holds it, before waiting for that; empty does not
            wait.
        remove: Whether to remove the file when the block ends.

    Yields:
        Whether no other process can hold it; False where the file system does not lock: then none
        does that this machine knows to live.

    Raises:
        BlockingIOError: If another process holds it, and this one does not wait.
        OSError: If the file cannot be opened.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as file:
            locked = _take(file, path, waiting)
            # The one before may have removed the file: then it locks nothing.
            if not _is_named(file, path):
                continue
            try:
                yield locked
            finally:
                if remove:
                    path.unlink(missing_ok=True)
                if not locked:
                    with contextlib.suppress(OSError):
                        _write(file, "")
            return


def _take(file: IO[str], path: pathlib.Path, waiting: str) -> bool:
    """Locks a lock file, or writes this process into it where the file system does not lock."""
    try:
        refused = _refused(file, wait=False)
    except BlockingIOError:
        if not waiting:
            raise
        logging.info("%s", waiting)
        refused = _refused(file, wait=True)
    if refused is None:
        return True
    _warn(path.parent, refused)
    _await_holder(file, waiting)
    _write(file, json.dumps(process.this()))
    return False


def _is_named(file: IO[Any], path: pathlib.Path) -> bool:
    """Whether an open file still has its name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _refused(file: IO[Any], *, wait: bool) -> OSError | None:
    """Locks a file; why the file system does not, or None where it does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        return error
    return None


def _await_holder(file: IO[str], waiting: str) -> None:
    """Waits until no process of this machine that lives is written in a lock file."""
    told = False
    while _is_held(file):
        if not waiting:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), file.name)
        if not told:
            logging.info("%s", waiting)
        told = True
        time.sleep(_POLL_SECONDS)


def _is_held(file: IO[str]) -> bool:
    file.seek(0)
    try:
        return process.is_alive(json.loads(file.read()))
    except (ValueError, KeyError, TypeError):  # Nobody's, or half of what somebody wrote.
        return False


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _warn(folder: pathlib.Path, error: OSError) -> None:
    """Says, once of each folder, that files there cannot be locked."""
    if folder in _warned:
        return
    _warned.add(folder)
    number = errno.EOPNOTSUPP if error.errno == _ENOTSUPP else error.errno
    logging.warning(
        "%s cannot be locked (%s): make sure that nothing else runs there, also on other machines.",
        folder,
        os.strerror(number) if number else error,
    )
