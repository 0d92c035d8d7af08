"""A signal stops a run after its step, or soon if no step ends; a second one always stops it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from remem_jax import signals

NUMBER = int(signal.SIGTERM)


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> signals._State:
    """A fresh state, with timeouts of a few hundredths of a second."""
    fresh = signals._State()
    monkeypatch.setattr(signals, "_state", fresh)
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.05)
    return fresh


def _watch(*coming: float, interrupt: Any = lambda number: None) -> list[int]:
    """Runs `_watch` with signals after these seconds each; returns the process's exit codes."""
    ended: list[int] = []
    seconds: Iterator[float] = iter(coming)
    begin = time.monotonic()

    def wait(timeout: float | None) -> int | None:
        nonlocal begin
        if timeout is None:
            next(seconds)
            begin = time.monotonic()
            return NUMBER
        time.sleep(timeout)
        return None

    signals._watch(wait, interrupt, ended.append)
    return ended


def test_outside_of_a_run_a_signal_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        signals._handle(NUMBER, None)


@pytest.mark.parametrize("doing", [signals.running, signals.steps])
def test_in_a_run_the_first_signal_requests_a_stop_and_the_second_interrupts(doing: Any) -> None:
    with signals.running(), doing():
        signals._handle(NUMBER, None)
        requested = signals.stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signals._handle(NUMBER, None)

    assert requested


def test_the_signal_of_slurm_is_handled_like_that_of_a_scheduler() -> None:
    assert {signal.SIGTERM, signal.SIGUSR1} <= set(signals.SIGNALS)


def test_a_stopped_command_exits_with_the_documented_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        signals.exit_stopped("remem_jax: stopped")

    assert stopped.value.code == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == "remem_jax: stopped\n"


def test_a_process_that_ignores_a_signal_is_ended_if_no_step_is_lost() -> None:
    assert _watch(0) == [NUMBER]


def test_a_run_that_takes_no_step_is_interrupted(state: signals._State) -> None:
    interrupted = []

    def interrupt(number: int) -> None:
        interrupted.append(state.timed_out)
        state.stopping = True
        raise InterruptedError

    with signals.running(), pytest.raises(InterruptedError):
        _watch(0, interrupt=interrupt)

    assert interrupted == [True]


_CHILD = """
import sys

import numpy as np

from remem_jax import signals

signals.GRACE_SECONDS = 0.2
signals.listen("last words")
with signals.running(), signals.steps() as step_ended:
    step_ended()
    print("listening", flush=True)
    np.broadcast_to(np.float32(0), 10**13).sum()  # Handles no signal for hours.
"""


def test_a_second_signal_ends_a_process_during_a_long_call() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        still = child.poll()
        child.send_signal(signal.SIGTERM)
        stderr = child.communicate(timeout=20)[1]

    assert (still, child.returncode) == (None, 128 + NUMBER)
    assert stderr.splitlines()[-1] == "last words"
