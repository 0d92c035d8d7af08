"""Ctrl-C and SIGTERM: a run ends after the step that is in progress, or soon where none is.

Python hears a signal when its main thread is between two calls. A thread sees to it that the
process also ends in a long call, as of XLA.
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

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 15.0  # For the next step of a run that takes none; schedulers kill after 30.
GRACE_SECONDS = 5.0  # To unwind, and to finish what is being written.


class _State:
    """What a run is doing, and what has come of signals.

    Attributes:
        doing: "other" where a signal is to end it at once; "run" where a step may be near, after
            which it is to end; "steps" where it takes steps, which it is to save.
        came: Signals that were heard.
        last: Number of the last of them.
        over: Whether the patience with a run that takes no step is at an end.
        obeyed: Whether the run is on its way to end.
    """

    def __init__(self) -> None:
        self.doing: Literal["other", "run", "steps"] = "other"
        self.came, self.last, self.over, self.obeyed = 0, 0, False, False


_state = _State()


def listen(last_words: str) -> None:
    """Hears signals from now on; called once, by the main thread of a command.

    The first signal raises `KeyboardInterrupt`, but not in a run (see `running` and `steps`), where
    it is noted. The second one always does; and it ends the process, with 128 and the number of the
    signal as exit code, where that takes longer than `GRACE_SECONDS`.

    Args:
        last_words: What to tell the user then.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _hear)

    def wait(seconds: float | None) -> int | None:
        if not select.select([reader], [], [], seconds)[0]:
            return None
        number = os.read(reader, 1)[0]
        return number if number in SIGNALS else None

    def end(number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{last_words}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)

    main = threading.main_thread().ident or 0
    arguments = (wait, lambda number: signal.pthread_kill(main, number), end)
    threading.Thread(target=_watch, args=arguments, name="signals", daemon=True).start()


def leave(told: str) -> NoReturn:
    """Ends the command after a `KeyboardInterrupt`; after a second signal, at once.

    Python would wait for what devices still compute, when its threads have ended already.
    """
    if _state.came > 1:
        sys.stderr.write(f"{told}\n")
        sys.stderr.flush()
        os._exit(128 + _state.last)
    release()
    sys.exit(told)


def release() -> None:
    """From now on a signal ends the process as the system has it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def asked() -> bool:
    """Whether a signal has come: the run is to end after this step."""
    return _state.came > 0


@contextlib.contextmanager
def running() -> Iterator[None]:
    """A run: a first signal waits for the end of a step, if one ends in `PATIENCE_SECONDS`."""
    _state.doing = "run"
    try:
        yield
    finally:
        _state.doing = "other"


@contextlib.contextmanager
def steps() -> Iterator[Callable[[], None]]:
    """Training, within a run: a first signal waits for the end of a step.

    Yields:
        What to call after every step: that one has ended, so that there is something to lose. Until
        then, as where the step is compiled for minutes, it is as in any run.
    """

    def ended() -> None:
        _state.doing = "steps"

    before = _state.doing
    try:
        yield ended
    finally:
        _state.doing, _state.obeyed = before, asked()


def _hear(number: int, frame: object) -> None:
    del frame
    _state.came, _state.last = _state.came + 1, number
    if _state.came > 1 or _state.over or _state.doing == "other":
        _state.obeyed = True
        raise KeyboardInterrupt
    logging.info("Stopping after this step is saved; once more to stop at once.")


def _watch(
    wait: Callable[[float | None], int | None],
    interrupt: Callable[[int], object],
    end: Callable[[int], object],
) -> None:
    """Ends the process where a signal is not obeyed in time.

    Args:
        wait: Gives the number of a signal that comes in so many seconds, or None.
        interrupt: Has the main thread hear a signal again.
        end: Ends the process for a signal.
    """
    while (number := wait(None)) is None:
        pass
    began, interrupted = time.monotonic(), _state.doing == "other"
    while (again := wait(0.05)) is None:
        now = time.monotonic()
        if _state.doing == "steps" or _state.obeyed:
            began = now
        elif interrupted and now - began > GRACE_SECONDS:
            end(number)
            return
        elif not interrupted and now - began > PATIENCE_SECONDS:
            _state.over, interrupted, began = True, True, now
            interrupt(number)
            wait(GRACE_SECONDS)  # That one.
    time.sleep(GRACE_SECONDS)
    end(again)
