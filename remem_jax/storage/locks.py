"""Locks between processes, with a fallback for file systems without locks.

Files are locked by flock. Network and FUSE file systems may not support it (NFS without a lock
daemon, Lustre without `-o flock`, gcsfuse). There the lock file names the process that holds it, so
that processes of the same machine can check whether it is alive. Processes of other machines are
not excluded, and a warning says so.
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
_ENOTSUPP = 524  # From the kernel's NFS and FUSE code; libc has no name for it.
_warned: set[pathlib.Path] = set()


def lock(file: IO[Any]) -> bool:
    """Locks an open file until it is closed or the process ends, after waiting for other processes.

    Returns:
        Whether it is locked; False if the file system does not support locks.
    """
    return _lock_error(file, wait=True) is None


@contextlib.contextmanager
def held(path: pathlib.Path, *, waiting: str = "", remove: bool = False) -> Iterator[bool]:
    """Holds a lock file while the block runs; a kill releases it.

    Args:
        path: The file; created if missing.
        waiting: Message to log before waiting for another process; "" does not wait.
        remove: Whether to remove the file at the end.

    Yields:
        Whether the lock excludes all processes; False if the file system does not support locks:
        then it only excludes living processes of this machine.

    Raises:
        BlockingIOError: If another process holds it, and `waiting` is "".
        OSError: If the file cannot be opened.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as file:
            locked = _take(file, path, waiting)
            # The previous holder may have removed the file; then the lock is void.
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
    """Locks a lock file; without support for locks, writes this process into it."""
    try:
        error = _lock_error(file, wait=False)
    except BlockingIOError:
        if not waiting:
            raise
        logging.info("%s", waiting)
        error = _lock_error(file, wait=True)
    if error is None:
        return True
    _warn(path.parent, error)
    _await_holder(file, waiting)
    _write(file, json.dumps(process.this()))
    return False


def _is_named(file: IO[Any], path: pathlib.Path) -> bool:
    """Returns whether an open file still has its name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _lock_error(file: IO[Any], *, wait: bool) -> OSError | None:
    """Locks a file; returns the error if the file system does not support locks, else None."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        return error
    return None


def _await_holder(file: IO[str], waiting: str) -> None:
    """Waits until the process in a lock file is not a living one of this machine."""
    logged = False
    while _is_held(file):
        if not waiting:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), file.name)
        if not logged:
            logging.info("%s", waiting)
        logged = True
        time.sleep(_POLL_SECONDS)


def _is_held(file: IO[str]) -> bool:
    file.seek(0)
    try:
        return process.is_alive(json.loads(file.read()))
    except (ValueError, KeyError, TypeError):  # Empty, or partially written.
        return False


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _warn(folder: pathlib.Path, error: OSError) -> None:
    """Warns, once per folder, that files there cannot be locked."""
    if folder in _warned:
        return
    _warned.add(folder)
    number = errno.EOPNOTSUPP if error.errno == _ENOTSUPP else error.errno
    logging.warning(
        "%s cannot be locked (%s): make sure that nothing else runs there, also on other machines.",
        folder,
        os.strerror(number) if number else error,
    )
