"""Standard output and standard error of a command, whatever they are connected to."""

import contextlib
import os
import sys
from typing import Any, TextIO


def prepare() -> None:
    """Makes both usable: closed ones lead nowhere, and no encoding lacks a letter.

    To be called before files are opened: one of them would become what is written to as standard
    error.
    """
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            if (made := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(made, number)
                os.close(made)
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        _set_errors(stream)


def _set_errors(stream: Any) -> None:
    if hasattr(stream, "reconfigure"):  # What tests put in its place has not.
        stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Writes a line to standard error; where nobody reads it, nothing happens."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def abandon(stream: TextIO) -> None:
    """Lets what could not be written go, or the interpreter tries again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
