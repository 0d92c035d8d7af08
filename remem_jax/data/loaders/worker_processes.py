"""Starts and ends worker processes that decode images, and explains their failures."""

import contextlib
import errno
import math
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator

from remem_jax.checks import SettingError

_SHARED = "/dev/shm"  # Where workers store their batches.


def begin(index: int, workers: int) -> None:
    """Makes a worker exit when its parent does, and not before.

    Ctrl-C and schedulers signal all processes, but the parent still needs batches for its last
    step.
    """
    del index, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=exit_with_parent, name="parent", daemon=True).start()


@contextlib.contextmanager
def explaining_errors(workers: int, needed: int) -> Iterator[None]:
    """Replaces errors of workers that die or cannot start by errors with advice.

    Args:
        workers: Number of workers.
        needed: Shared memory for their batches, in bytes.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not workers or not (code or isinstance(error, OSError)):
            raise
        exit_code = int(code.group(1)) if code else None
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM)
        if full or exit_code == -signal.SIGBUS:
            raise SettingError(
                f"Decoding workers cannot go on: {_SHARED} is full ({_mebibytes(_SHARED)}): docker "
                f"run --shm-size={max(math.ceil(needed / 2**30), 1)}g, or set config.data.workers "
                "to 0; the same command goes on."
            ) from error
        reason = f"exit code {exit_code}" if exit_code is not None else str(error)
        if exit_code is not None and exit_code < 0:
            reason = signal.strsignal(-exit_code) or reason
        raise SettingError(
            f"A decoding worker was ended by the system ({reason}), as it does where memory is "
            "full: give the job more memory, or set config.data.workers to fewer, or 0; the same "
            "command goes on."
        ) from error


def _mebibytes(folder: str) -> str:
    """Describes the size of the file system of a folder."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder).total / 2**20:.4g} MiB"
    return "it cannot be read"
