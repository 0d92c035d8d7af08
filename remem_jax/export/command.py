"""Handles paths, signals, exit codes and error messages for the commands `export` and `predict`."""

import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from remem_jax.checks import SettingError, require
from remem_jax.export import options
from remem_jax.storage import files, streams

_working: list[bool] = []  # Not empty once there is work that must be stopped in order.


class StoppedError(Exception):
    """Work ended early by the user or a full disk; the message says what is kept.

    Attributes:
        code: Exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        """Stores the message for the user and the exit code."""
        super().__init__(message)
        self.code = code


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def path(text: str) -> pathlib.Path:
    """Returns a path given by a user; expands ~ if there is a home folder."""
    return pathlib.Path(os.path.expanduser(text))  # noqa: PTH111  `Path.expanduser` raises.


def require_run(run: pathlib.Path) -> None:
    """Raises `SettingError` if there is no such folder; to be called before slow imports."""
    require(run.is_dir(), f"There is no run {run}: give the --workdir of one.")


def require_model(path: pathlib.Path) -> None:
    """Raises `SettingError` if there is no such run or export; to be called before slow imports."""
    if path.suffix in options.SUFFIXES.values():
        require(path.exists(), f"There is no export {path}.")
    else:
        require_run(path)


def begin() -> None:
    """Prepares standard streams and signal handlers.

    SIGTERM and Ctrl-C stop the work in order; before `run`, they end the process at once. A second
    signal ends it at once too, even while Python compiles or runs a graph and cannot run handlers.
    """
    streams.prepare()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_signal, args=(read,), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    if not _working:
        streams.print_error("remem_jax: stopped before it began.")
        os._exit(128 + number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _end_at_second_signal(file: int) -> None:
    """Reads a byte for each signal that arrives."""
    signals = 0
    while number := os.read(file, 1):
        signals += number[0] in (signal.SIGINT, signal.SIGTERM)
        if signals > 1:
            os._exit(128 + number[0])


def exit_code(error: BaseException) -> int:
    """Returns the exit code that shells use for the signal."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return 128 + number


def run(work: Callable[[], None], *, stopped: str) -> int:
    """Runs a command; returns its exit code. Errors that a user can fix are one line on stderr.

    Args:
        work: The command.
        stopped: Message if a signal ends it.
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
    except BrokenPipeError:  # The reader has closed the pipe, as `head` does.
        streams.abandon(sys.stdout)
        return 1
    except (OSError, RuntimeError) as error:
        message = _message(error)
        if message is None:
            raise
        streams.abandon(sys.stdout)
        streams.print_error(f"remem_jax: {message}")
        return 1
    return 0


def _message(error: OSError | RuntimeError) -> str | None:
    """Returns the message for an error of the system or the device; None for a bug."""
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror or error}: {files.advice(error.errno)}."
    if "jax" not in sys.modules:
        return None
    from remem_jax import mesh

    out_of_memory = mesh.out_of_memory(error)
    return out_of_memory and f"{out_of_memory} Use a smaller batch size, or another device."
