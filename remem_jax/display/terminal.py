"""The live display of a run on a terminal: its stages, a bar, its results and the time left."""

import contextlib
import io
import logging
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

from rich import live
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from remem_jax.display import board, lines
from remem_jax.display.durations import duration

_REFRESHES = 2.0  # Per second.
_STAGES = 5  # Most stages listed before the current one, and after it.
_FIXED_LINES = 11  # Lines besides those stages, and one of the terminal that stays free.
_BAR = 40  # Largest width of the bar, in characters.
_RESULTS = 4
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}
_MARKS = {"done": "✓", "partial": "✗", "current": "▶", "more": "…"}
_ASCII_MARKS = {"done": "+", "partial": "x", "current": ">", "more": "..."}


class Terminal:
    """Shows a board on a terminal from its first change on; messages are printed above it."""

    def __init__(
        self, shown: board.Board, stream: TextIO, environment: Mapping[str, str], **options: Any
    ) -> None:
        """Shows nothing yet.

        Args:
            shown: The board.
            stream: The terminal.
            environment: Environment variables.
            **options: Further options of rich's console, such as its width.
        """
        self._board = shown
        self.console = _Console(
            file=cast("TextIO", _Stream(stream)),
            force_terminal=True,
            force_jupyter=False,
            highlight=False,
            _environ=environment,
            **options,
        )
        self._live: live.Live | None = None
        self._state = "running"

    def changed(self) -> None:
        """Starts to show the board, or shows what has changed."""
        if self._live is not None:
            self._live.refresh()
        elif self._state == "running":
            self._live = live.Live(
                console=self.console,
                get_renderable=self._render,
                refresh_per_second=_REFRESHES,
                redirect_stdout=sys.stdout.isatty(),  # Otherwise it has what the user asked for.
            )
            self._live.start(refresh=True)

    def advanced(self, stage: board.Stage) -> None:
        """Does nothing: the display is drawn again at regular times."""

    def write(self, text: str, level: int) -> None:
        """Prints a message above the display."""
        # Without a line break of ours, a path that is longer than a line can still be copied.
        self.console.print(Text(text, style=_STYLES.get(level, "")), soft_wrap=True)

    def stop(self, *, failed: bool) -> None:
        """Leaves the last state on the terminal."""
        self._state = "stopped" if failed else "finished"
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        shown, options = self._board, self.console.options
        marks = _ASCII_MARKS if options.ascii_only else _MARKS
        listed = max(min(_STAGES, (options.size.height - _FIXED_LINES) // 2), 0)
        parts: list[RenderableType] = []
        if shown.title:
            parts.append(_line(shown.title, "bold"))
        parts.append(_finished(shown.finished, listed, marks))
        for stage in shown.running[-1:]:
            parts += [
                _line(f"{marks['current']} {stage.title}", "bold"),
                _progress(shown, stage, options.max_width),
            ]
        parts.append(_to_come(shown.to_come, listed, marks))
        parts += [
            _line(f"  {100 * result.accuracy:.2f} % {result.split:10}  {result.model}")
            for result in shown.results[:_RESULTS]
        ]
        parts.append(_line(f"  {self._time()}"))
        if self._state == "running":
            # The cursor is on a line of its own, where a shell goes on if the process is killed.
            parts.append(Text(""))
        return Group(*parts)

    def _time(self) -> str:
        """Describes the time so far and the time left."""
        shown = self._board
        so_far = duration(shown.clock() - shown.started)
        if self._state == "finished":
            return f"Took {so_far}."
        if self._state == "stopped":
            return f"Stopped after {so_far}."
        left = shown.seconds_left()
        if left is None:
            return f"{so_far} so far"
        about = "" if shown.has_deadline else "about "
        return f"{so_far} so far, {about}{duration(left)} left"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _finished(stages: tuple[board.Finished, ...], most: int, marks: Mapping[str, str]) -> Table:
    """Lists the last stages that have ended."""
    table = _table()
    hidden = max(len(stages) - most, 0)
    if hidden:
        table.add_row(_line(f"{marks['done']} {hidden} {'earlier ' * bool(most)}done", "dim"), "")
    for stage in stages[hidden:]:
        mark = marks["partial" if stage.missing else "done"]
        took = "earlier" if stage.seconds is None else duration(stage.seconds)
        table.add_row(
            _line(f"{mark} {stage.title}", "yellow" if stage.missing else "green"),
            _line(stage.missing or took, "dim"),
        )
    return table


def _to_come(stages: tuple[board.Planned, ...], most: int, marks: Mapping[str, str]) -> Table:
    """Lists the next stages."""
    table = _table()
    for stage in stages[:most]:
        table.add_row(_line(f"  {stage.title}", "dim"), "")
    if len(stages) > most:
        table.add_row(_line(f"  {marks['more']} {len(stages) - most} more", "dim"), "")
    return table


def _table() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True)
    return table


def _progress(shown: board.Board, stage: board.Stage, width: int) -> RenderableType:
    """Draws the bar of a stage and its numbers, of which only the first fit a narrow terminal."""
    left, rate = stage.seconds_left(), stage.rate()
    numbers = [
        lines.counted(stage) if stage.done else "starting",
        "" if left is None else f"{duration(left)} left",
        "" if rate is None else lines.speed(stage, rate),
    ]
    if stage.steps is None and not stage.done:
        numbers = [duration(shown.clock() - stage.started)]
    text = ", ".join(number for number in numbers if number)
    bar = ProgressBar(
        total=stage.steps,
        completed=stage.done,
        width=max(min(_BAR, width - len(text) - 4), 6),
        pulse=stage.steps is None,
        animation_time=shown.clock(),
    )
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(" ", bar, _line(text))
    return table


class _Console(Console):
    """A console that never hides the cursor, so that no way to end a process leaves it hidden."""

    def show_cursor(self, show: bool = True) -> bool:
        del show
        return False


class _Stream(io.TextIOBase):
    """A terminal that may be closed during a run, which then goes on.

    A signal handler that writes while the stream is written to raises RuntimeError.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._stream.flush()
