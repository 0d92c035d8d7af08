"""What the commands `export` and `predict` share: paths, signals, and one line for each ending."""

import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import jax

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import files, streams

_working: list[bool] = []  # Holds something from when there is work to end in order.


class StoppedError(Exception):
    """The user, or a full disk, has ended the work; the message says what is kept.

    Attributes:
        code: Exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        """Takes what to tell the user."""
        super().__init__(message)
        self.code = code


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the work as Ctrl-C does."""


def path(text: str) -> pathlib.Path:
    """A path as a user gives it, `~` for the home; where there is none it stays."""
    return pathlib.Path(os.path.expanduser(text))  # noqa: PTH111  That raises.


def begin() -> None:
    """Prepares the process: standard streams, and signals.

    SIGTERM ends the work in order, as Ctrl-C does; before `run`, at once. A second signal ends the
    process at once, also where the first one has to wait: Python hears none while it compiles or
    runs a graph.
    """
    streams.prepare()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(heard,), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    if not _working:
        streams.print_error("remem_jax: stopped before it began.")
        os._exit(128 + number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _end_at_the_second(heard: int) -> None:
    """Reads a byte for each signal that comes."""
    asked = 0
    while number := os.read(heard, 1):
        asked += number[0] in (signal.SIGINT, signal.SIGTERM)
        if asked > 1:
            os._exit(128 + number[0])


def exit_code(error: BaseException) -> int:
    """That of a shell for the signal."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return 128 + number


def run(work: Callable[[], None], *, stopped: str) -> int:
    """Runs a command; returns its exit code. What the user can mend ends in one line on stderr.

    Args:
        work: The command.
        stopped: What to say where a signal ends it.
    """
    _working.append(True)
    try:
        work()
    except SettingError as error:
        streams.print_error(f"remem_jax: {error}")
        return 1
    except StoppedError as error:
        streams.print_error(f"remem_jax: {error}")
        return error.code
    except KeyboardInterrupt as error:
        streams.print_error(f"remem_jax: {stopped}.")
        return exit_code(error)
    except BrokenPipeError:  # Who reads has seen enough, as `head` has.
        streams.abandon(sys.stdout)
        return 1
    except (OSError, jax.errors.JaxRuntimeError) as error:
        told = _message(error)
        if told is None:
            raise
        streams.abandon(sys.stdout)
        streams.print_error(f"remem_jax: {told}")
        return 1
    return 0


def _message(error: OSError | RuntimeError) -> str | None:
    """What to say of what the system, or the device, cannot do; None of an error of our own."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}: {files.advice(error.errno)}."
    full = mesh.out_of_memory(error)
    return full and f"{full} Give fewer images at once, or use another device."
