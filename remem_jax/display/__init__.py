"""Shows users what a run does: one live display on a terminal, and lines with a time elsewhere.

A process has one display. A command opens it (`opened`, `use_terminal`); everything that takes long
reports to it (`plan`, `stage`, `result`). Without a command, in a notebook for example, progress is
logged, in the way that the log is set up.
"""

import contextlib
import logging as python_logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from absl import logging

from remem_jax.display import board, lines, messages
from remem_jax.display.board import Planned, Stage
from remem_jax.display.durations import duration

__all__ = [
    "Planned",
    "Stage",
    "begin_run",
    "duration",
    "is_terminal",
    "opened",
    "plan",
    "result",
    "run",
    "stage",
    "until",
    "use_terminal",
]


class _View(Protocol):
    """Shows a board."""

    def changed(self) -> None:
        """Called when a run or a stage begins, or the plan changes."""

    def advanced(self, stage: Stage) -> None:
        """Called after every step."""

    def stop(self, *, failed: bool) -> None:
        """Called at the end of the command."""


class _Display:
    """The display of this process.

    Attributes:
        board: The stages, results and times.
        view: Shows the board.
        messages: Shows messages; None unless a command has opened the display.
    """

    def __init__(self) -> None:
        self.board = board.Board(on_advance=lambda stage: self.view.advanced(stage))
        self.view: _View = lines.Lines(self.board)
        self.messages: messages.Messages | None = None


_display = _Display()


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Shows a command's messages as lines with a time; at its end, stops a live display.

    With absl's flag --verbosity=1, messages keep absl's prefix, and nothing is live.
    """
    global _display
    before, _display = _display, _Display()
    absl, root = logging.get_absl_handler(), python_logging.getLogger()
    handlers = list(root.handlers)
    absl.addFilter(messages.is_ours)
    # It stays: tasks of writes that failed are collected after the command's last message.
    python_logging.getLogger("asyncio").addFilter(messages.is_ours)
    if logging.get_verbosity() < logging.DEBUG:
        _display.messages = messages.Messages(messages.write)
        root.handlers = [handler for handler in handlers if handler is not absl]
        root.addHandler(_display.messages)
    failed = True
    try:
        yield
        _display.board.complete()
        failed = False
    finally:
        _display.view.stop(failed=failed)
        root.handlers = handlers
        absl.removeFilter(messages.is_ours)
        _display = before


def use_terminal() -> None:
    """Makes an opened display live, if standard error is a terminal that can show it.

    If several processes make one run, only one may call it.
    """
    if _display.messages is not None and is_terminal(os.environ):
        from remem_jax.display import terminal  # Takes a tenth of a second to import.

        view = terminal.Terminal(_display.board, sys.stderr, os.environ)
        _display.view, _display.messages.write = view, view.write


def is_terminal(environment: Mapping[str, str]) -> bool:
    """Returns whether standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and environment.get("TERM", "").lower() not in ("dumb", "unknown")


@contextlib.contextmanager
def run() -> Iterator[None]:
    """Marks a run, which is forgotten at its end unless it is that of a command."""
    try:
        yield
    finally:
        if _display.messages is None:
            _display.board.begin_run("")


def begin_run(title: str) -> None:
    """Begins one of several runs: the stages and results of the one before are no longer shown."""
    _display.board.begin_run(title)
    _display.view.changed()


def plan(stages: Sequence[str | Planned]) -> None:
    """Sets the stages to come, instead of those planned before; stages that are done stay.

    Args:
        stages: Their titles. With their work and kind, the time left of the run is estimated.
    """
    _display.board.plan(stages)
    _display.view.changed()


def stage(
    title: str,
    steps: int | None,
    first_step: int = 0,
    unit: str = "step",
    *,
    share: float = 1.0,
) -> Stage:
    """Begins a stage; the result's `advance` reports its steps, and `close` ends it.

    Args:
        title: Title: that of a planned stage, perhaps with more words after it, or another one.
        steps: Number of steps; None if unknown.
        first_step: Steps that earlier starts have done.
        unit: What is counted: "step", "image" or "MiB".
        share: Share of the planned stage that it is, if that has several parts.
    """
    begun = _display.board.begin(title, steps, first_step=first_step, unit=unit, share=share)
    _display.view.changed()
    return begun


def result(model: str, accuracy: float, split: str) -> None:
    """Shows the accuracy of a model, in place of its last one.

    Args:
        model: Title of the model.
        accuracy: Accuracy, or another metric of the data set, from 0 to 1.
        split: Split that it was measured on: "validation" or "test".
    """
    _display.board.result(model, accuracy, split)


def until(seconds_left: float | None) -> None:
    """Sets the time left of the run, by a plan with a deadline; None estimates it again."""
    _display.board.until(seconds_left)
