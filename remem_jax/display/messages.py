"""Messages for users: log records as lines with a time, and which records are shown."""

import contextlib
import logging
import sys
from collections.abc import Callable

# Writes a message of a level, such as logging.WARNING.
Write = Callable[[str, int], None]


class Messages(logging.Handler):
    """Writes log records as `03:52:11 warning: ...`, those of libraries only if they matter."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write
        self.setFormatter(logging.Formatter("%(asctime)s %(kind)s%(message)s", "%H:%M:%S"))
        self.addFilter(is_ours)

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.levelname.lower() if record.levelno > logging.INFO else ""
        record.kind = f"{kind}: " if kind else ""
        try:
            self.write(self.format(record), record.levelno)
        except Exception:  # noqa: BLE001  As in all handlers: a message must not end a run.
            self.handleError(record)


def write(text: str, level: int) -> None:
    """Writes a message to standard error, which may be closed."""
    del level
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def is_ours(record: logging.LogRecord) -> bool:
    """Returns whether a log record is for the user: from this package, or a library's warning.

    TFDS warns that a data set is not prepared, Orbax that it cannot write, and asyncio of Orbax's
    pending writes after one has failed. Our own errors report the same, with advice.
    """
    if record.name == "asyncio" and "never retrieved" in record.getMessage():
        return False
    if "tensorflow_datasets" in record.pathname:
        return record.levelno >= logging.ERROR
    if "orbax" in record.pathname:
        return record.levelno >= logging.CRITICAL
    return record.levelno > logging.INFO or "remem_jax" in record.pathname
