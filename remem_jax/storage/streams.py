"""Standard streams and an encoding that every command can rely on."""

import os
import sys
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
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding() == "ascii" and os.environ.get(_UTF8) != "1":
        os.environ[_UTF8] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
    return open(number, mode, encoding="utf-8", closefd=False)
