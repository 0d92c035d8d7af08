"""Handles Ctrl-C, SIGTERM and SIGUSR1: a run stops after its step, or soon if it takes no steps.

Python handles signals only between two instructions of the main thread. A second thread ensures
that the process also ends during a long call, such as a compilation by XLA.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, NoReturn

from absl import logging

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm's --signal sends the last.
# Exit code after a signal: everything is saved, and the same command goes on. It is EX_TEMPFAIL of
# sysexits.h, "try again later". docs/clusters.md documents it for schedulers.
STOPPED = 75
PATIENCE_SECONDS = 15.0  # Time to finish a step; schedulers kill a process after 30 seconds.
GRACE_SECONDS = 5.0  # Time to unwind the stack and to finish writing files.


class _State:
    """The state of the command and the signals so far.

    Attributes:
        phase: "other": a signal ends the process at once. "run": a step may end soon, and the run
            stops after it. "steps": the run takes steps, and saves the current one.
        received: Number of signals received.
        last: The last signal.
        timed_out: Whether `PATIENCE_SECONDS` have passed without a step.
        stopping: Whether the run is ending.
    """

    def __init__(self) -> None:
        self.phase: Literal["other", "run", "steps"] = "other"
        self.received, self.last, self.timed_out, self.stopping = 0, 0, False, False


_state = _State()


def listen(message: str) -> None:
    """Installs the signal handlers; called once, by the main thread of a command.

    During a run (see `running` and `steps`), the first signal only requests a stop. Otherwise, the
    first signal raises `KeyboardInterrupt`, as does every second one. If the process does not end
    within `GRACE_SECONDS` after a second signal, it exits with code 128 + the signal's number.

    Args:
        message: Printed to stderr if the process exits in this way.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _handle)

    def wait(seconds: float | None) -> int | None:
        if not select.select([reader], [], [], seconds)[0]:
            return None
        number = os.read(reader, 1)[0]
        return number if number in SIGNALS else None

    def end(number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)

    main = threading.main_thread().ident or 0
    arguments = (wait, lambda number: signal.pthread_kill(main, number), end)
    threading.Thread(target=_watch, args=arguments, name="signals", daemon=True).start()


def leave(message: str) -> NoReturn:
    """Exits with a message after a `KeyboardInterrupt`; after a second signal, immediately.

    A normal exit of Python would wait for computations on the devices.
    """
    if _state.received > 1:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
        os._exit(128 + _state.last)
    release()
    exit_stopped(message)


def exit_stopped(message: str) -> NoReturn:
    """Exits with a message on stderr and `STOPPED`."""
    sys.stderr.write(f"{message}\n")
    sys.exit(STOPPED)


def release() -> None:
    """Restores the system's default handlers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def stop_requested() -> bool:
    """Returns whether a signal was received, so that the run should stop after this step."""
    return _state.received > 0


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Marks a run: the first signal takes effect after a step, or after `PATIENCE_SECONDS`."""
    _state.phase = "run"
    try:
        yield
    finally:
        _state.phase = "other"


@contextlib.contextmanager
def steps() -> Iterator[Callable[[], None]]:
    """Marks training within a run: the first signal takes effect after the current step.

    Yields:
        A function to call after every step. Before the first call, as during the compilation of the
        step, there is no progress to save, and `PATIENCE_SECONDS` apply.
    """

    def step_ended() -> None:
        _state.phase = "steps"

    before = _state.phase
    try:
        yield step_ended
    finally:
        _state.phase, _state.stopping = before, stop_requested()


def _handle(number: int, frame: object) -> None:
    del frame
    _state.received, _state.last = _state.received + 1, number
    if _state.received > 1 or _state.timed_out or _state.phase == "other":
        _state.stopping = True
        raise KeyboardInterrupt
    logging.info("Stopping after this step is saved; a second signal stops at once.")


def _watch(
    wait: Callable[[float | None], int | None],
    interrupt: Callable[[int], object],
    end: Callable[[int], object],
) -> None:
    """Ends the process if a signal has no effect in time.

    Args:
        wait: Returns a signal that arrives within a number of seconds, or None.
        interrupt: Sends a signal to the main thread.
        end: Exits the process because of a signal.
    """
    while (number := wait(None)) is None:
        pass
    since, interrupted = time.monotonic(), _state.phase == "other"
    while (second := wait(0.05)) is None:
        now = time.monotonic()
        if _state.phase == "steps" or _state.stopping:
            since = now
        elif interrupted and now - since > GRACE_SECONDS:
            end(number)
            return
        elif not interrupted and now - since > PATIENCE_SECONDS:
            _state.timed_out, interrupted, since = True, True, now
            interrupt(number)
            wait(GRACE_SECONDS)  # Consumes the signal of `interrupt`.
    time.sleep(GRACE_SECONDS)
    end(second)
