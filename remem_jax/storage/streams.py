"""Sets up standard streams and their encoding for all commands."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

_UTF8 = "PYTHONUTF8"


def prepare() -> None:
    """Opens closed standard streams on the null device, and makes all text writable.

    Characters that a stream's encoding lacks are escaped. If the locale is ASCII, so that Python
    could not read file names either, Python restarts in UTF-8 mode.

    Call it first in a command: otherwise the next file to be opened gets the number of a closed
    stream, and C libraries write their errors into it.
    """
    for number in range(3):
        _require_open(number)
    if sys.stdin is None:
        sys.stdin = sys.__stdin__ = _stream(0, "r")
    if sys.stdout is None:
        sys.stdout = sys.__stdout__ = _stream(1, "w")
    if sys.stderr is None:
        sys.stderr = sys.__stderr__ = _stream(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Tests replace it by other streams.
            stream.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding() == "ascii" and os.environ.get(_UTF8) != "1":
        os.environ[_UTF8] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def begin(name: str) -> None:
    """Calls `prepare`, and makes Ctrl-C during imports one line and exit code 130."""
    prepare()

    def stop(*_: object) -> None:
        os.write(2, f"{name}: stopped.\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


def run(name: str, work: Callable[[], int]) -> int:
    """Runs a command after `begin`, and returns its exit code.

    Ctrl-C, and standard output on a full disk, are one line on standard error. The reader of
    standard output may exit at any time, as `head` does.

    Args:
        name: Name of the command.
        work: Function that returns the exit code.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_error(f"{name}: stopped.")
        return 130
    except BrokenPipeError:
        abandon(sys.stdout)
        return 1
    except OSError as error:
        if error.filename is not None:
            raise
        abandon(sys.stdout)
        print_error(f"{name}: standard output cannot be written ({error.strerror}).")
        return 1
    return code


def print_error(text: str) -> None:
    """Writes a line to standard error; ignores a closed stream."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def abandon(stream: TextIO) -> None:
    """Drops unwritten output, which the interpreter would otherwise try to write at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _require_open(number: int) -> None:
    """Opens a file descriptor on the null device if it is closed."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, number)  # For child processes too.
        if null != number:
            os.close(null)
        else:
            os.set_inheritable(number, True)


def _stream(number: int, mode: str) -> TextIO:
    return io.TextIOWrapper(open(number, f"{mode}b", closefd=False), encoding="utf-8")
