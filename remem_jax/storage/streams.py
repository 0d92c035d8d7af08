"""Standard streams and an encoding that every command can rely on."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

_UTF8 = "PYTHONUTF8"


def prepare() -> None:
    """Opens closed standard streams on the null device, and lets text of any kind be written.

    What the encoding of a stream lacks is written as an escape. Where the locale is ASCII, so that
    Python could not read the names of files either, it starts anew in UTF-8 mode.

    Call it first of all where a command begins: the next file that is opened would take the number
    of a closed stream, and what C libraries write to standard error would land in it.
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
        if isinstance(stream, io.TextIOWrapper):  # What tests put in its place is none.
            stream.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding() == "ascii" and os.environ.get(_UTF8) != "1":
        os.environ[_UTF8] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def begin(name: str) -> None:
    """`prepare`, and Ctrl-C is one line and exit code 130 while a command imports what it needs."""
    prepare()

    def stop(*_: object) -> None:
        os.write(2, f"{name}: stopped.\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


def run(name: str, work: Callable[[], int]) -> int:
    """Does the work of a command that `begin` has begun; its exit code.

    What the user can mend is one line on standard error: Ctrl-C, standard output on a full disk.
    Who reads standard output may end at any time, as `head` does.

    Args:
        name: Of the command.
        work: Returns its exit code.
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
    """Writes a line to standard error; where nobody reads it, nothing happens."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def abandon(stream: TextIO) -> None:
    """Drops what could not be written, or the interpreter tries again when it ends."""
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
