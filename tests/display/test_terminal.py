"""The live display, as pyte's terminal shows it."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator

import pyte
import pytest

from remem_jax.display.board import Board, Planned
from remem_jax.display.terminal import Terminal
from tests.display.test_board import Clock, steps


class Shown:
    """A board on a terminal of some size.

    Attributes:
        board: The board.
        clock: Its clock.
        view: Its display.
        stream: The file that stands for the terminal; like a terminal, it begins a new line at its
            start.
    """

    def __init__(
        self, width: int, height: int, encoding: str = "utf-8", **environment: str
    ) -> None:
        self._size, self.clock = (width, height), Clock()
        self.board = Board(clock=self.clock)
        self.stream = tempfile.TemporaryFile("w+", encoding=encoding, newline="\r\n")  # noqa: SIM115
        variables = {"TERM": "xterm-256color", **environment}
        self.view = Terminal(self.board, self.stream, variables, width=width, height=height)

    @property
    def output(self) -> str:
        """What was written to the terminal."""
        written = os.pread(self.stream.fileno(), 2**20, 0)
        return written.decode(self.stream.encoding)

    def close(self) -> None:
        """Stops the display."""
        self.view.stop(failed=True)
        self.stream.close()

    def screen(self) -> list[str]:
        """Returns the lines of the terminal, without empty ones at its end."""
        screen = pyte.Screen(*self._size)
        pyte.Stream(screen).feed(self.output)
        lines = [line.rstrip() for line in screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


@pytest.fixture
def show() -> Iterator["Show"]:
    """Makes displays, and stops them at the end."""
    made: list[Shown] = []

    def make(width: int, height: int, **options: str) -> Shown:
        made.append(Shown(width, height, **options))
        return made[-1]

    yield make
    for shown in made:
        shown.close()


Show = Callable[..., Shown]
PLAN = [
    Planned("Fine-tuning: teacher", 20, "SGD"),
    Planned("Fine-tuning: students of step 20", 20, "kd"),
    Planned("ReMem: teacher", 20, "SGD"),
    Planned("ReMem: students of step 20", 20, "kd"),
]


def in_the_third_stage(shown: Shown) -> Shown:
    """Shows a run in its third stage."""
    shown.board.plan(PLAN)
    shown.view.changed()
    for planned in PLAN[:2]:
        with shown.board.begin(planned.title, 20) as stage:
            steps(shown.clock, stage, 1, 20, seconds=30.0)
    shown.board.result("From scratch: students", 0.5, "validation")
    shown.board.result("Fine-tuning: student", 0.875, "test")
    stage = shown.board.begin(PLAN[2].title, 20)
    steps(shown.clock, stage, 1, 5, seconds=30.0)
    shown.view.changed()
    return shown


def test_a_terminal_shows_stages_a_bar_results_and_the_time_left(show: Show) -> None:
    shown = in_the_third_stage(show(90, 30))

    shown.view.write("03:52:11 told", logging.INFO)
    lines = shown.screen()

    bar = lines.pop(4)
    assert lines == [
        "03:52:11 told",
        "✓ Fine-tuning: teacher              10 min",
        "✓ Fine-tuning: students of step 20  10 min",
        "▶ ReMem: teacher",
        "  ReMem: students of step 20",
        "  87.50 % test        Fine-tuning: student",
        "  50.00 % validation  From scratch: students",
        "  22 min so far, about 18 min left",
    ]
    assert bar.strip("━╸╺ ") == "step 5 of 20, 8 min left, 0.03 steps/s"
    assert bar.startswith("  ━━━━━━━━━━")


def test_messages_are_above_the_display_in_their_order(show: Show) -> None:
    shown = in_the_third_stage(show(60, 40))

    for number in range(3):
        shown.view.write(f"message {number}", logging.WARNING)
    lines = shown.screen()

    assert lines[:3] == ["message 0", "message 1", "message 2"]
    assert lines[3].startswith("✓ Fine-tuning: teacher")
    assert sum("ReMem: teacher" in line for line in lines) == 1


def test_a_long_path_is_not_divided(show: Show) -> None:
    shown = in_the_third_stage(show(40, 40))
    path = f"/runs/{'a' * 70}/report.html"

    shown.view.write(f"Report: {path}", logging.INFO)

    assert path in shown.output


@pytest.mark.parametrize("width", [20, 40, 79])
def test_no_line_of_the_display_is_wider_than_a_narrow_terminal(show: Show, width: int) -> None:
    narrow, wide = in_the_third_stage(show(width, 40)), in_the_third_stage(show(120, 40))

    for shown in (narrow, wide):
        shown.view.write("told", logging.INFO)
    lines, all_lines = narrow.screen(), wide.screen()

    assert len(lines) == len(all_lines)  # A line that is too long would continue on the next.
    for line, whole in zip(lines, all_lines, strict=True):
        assert line[:3] == whole[:3]


@pytest.mark.parametrize("height", [13, 17])
def test_many_stages_leave_room_for_the_others_on_a_low_terminal(show: Show, height: int) -> None:
    shown = show(60, height)
    shown.view.changed()
    for number in range(30):
        shown.board.plan([f"stage {number}"])
        shown.board.begin(f"stage {number}", None).close()
    shown.board.plan([f"stage {number}" for number in range(31, 60)])
    shown.board.begin("stage 30", 1)
    shown.view.changed()

    shown.view.write("told", logging.INFO)
    lines = shown.screen()

    listed = (height - 11) // 2
    assert len(lines) < height
    assert lines[0] == "told"
    assert lines[1] == f"✓ {30 - listed} earlier done"
    assert "▶ stage 30" in lines
    assert f"  … {29 - listed} more" in lines


def test_the_end_leaves_a_static_state_and_a_visible_cursor(show: Show) -> None:
    shown = in_the_third_stage(show(60, 30))
    shown.board.running[-1].close()
    shown.board.complete()

    shown.view.stop(failed=False)
    shown.view.changed()

    *lines, last = shown.screen()
    assert last == "  Took 22 min."
    assert [line.partition("  ")[0] for line in lines[:4]] == [
        "✓ Fine-tuning: teacher",
        "✓ Fine-tuning: students of step 20",
        "✗ ReMem: teacher",
        "✓ ReMem: students of step 20",
    ]
    assert "\x1b[?25l" not in shown.output  # Hides the cursor.
    assert shown.output.endswith("\n")


def test_a_stopped_run_says_so(show: Show) -> None:
    shown = in_the_third_stage(show(60, 30))

    shown.view.stop(failed=True)

    assert shown.screen()[-1] == "  Stopped after 22 min."


def test_a_process_that_is_killed_leaves_the_cursor_on_a_line_of_its_own(show: Show) -> None:
    shown = in_the_third_stage(show(60, 30))
    shown.view.write("told", logging.INFO)
    output = shown.output
    shown.view.stop(failed=True)

    screen = pyte.Screen(60, 30)
    pyte.Stream(screen).feed(output)

    assert screen.cursor.x == 0
    assert not screen.cursor.hidden
    assert screen.display[screen.cursor.y - 1].startswith("  22 min so far")
    assert not screen.display[screen.cursor.y].strip()


def test_no_color_is_respected(show: Show) -> None:
    coloured, plain = show(60, 30), show(60, 30, NO_COLOR="1")

    for shown in (coloured, plain):
        in_the_third_stage(shown).view.write("odd", logging.WARNING)
        shown.view.stop(failed=True)

    assert "\x1b[33modd" in coloured.output
    assert "\x1b[3" not in plain.output
    assert "\x1b[1;3" not in plain.output


def test_an_encoding_without_symbols_has_others(show: Show) -> None:
    shown = in_the_third_stage(show(60, 30, encoding="ascii"))

    assert shown.output.isascii()
    assert "+ Fine-tuning: teacher" in shown.output
    assert "> ReMem: teacher" in shown.output


def test_nothing_is_shown_before_something_begins(show: Show) -> None:
    shown = show(60, 30)

    shown.view.write("told", logging.INFO)
    shown.view.stop(failed=False)

    assert shown.screen() == ["told"]


def test_a_run_goes_on_when_its_terminal_is_closed(show: Show) -> None:
    shown = in_the_third_stage(show(60, 30))
    shown.stream.close()

    shown.view.write("told", logging.INFO)
    shown.view.stop(failed=True)


def test_a_stage_without_a_number_of_steps_shows_its_time(show: Show) -> None:
    shown = show(60, 30)
    shown.board.begin("Download of x", None, unit="MiB")
    shown.clock.now += 7.0
    shown.view.changed()

    lines = shown.screen()

    assert lines[0] == "▶ Download of x"
    assert lines[1].strip("━╸╺ ") == "7 s"
