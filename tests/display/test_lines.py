"""Progress and messages where there is no terminal."""

import contextlib
import io
import logging as python_logging
import re
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from absl import logging
from absl.logging import converter

from remem_jax import display
from remem_jax.display import lines, messages
from remem_jax.display.board import Board, Planned
from tests.display.test_board import Clock, steps


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    board = Board(clock=clock)
    board.on_advance = lines.Lines(board).advanced
    return board


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages that are logged."""
    messages: list[str] = []
    handler = python_logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.set_verbosity(logging.INFO)
    logging.get_absl_logger().addHandler(handler)
    yield messages
    logging.get_absl_logger().removeHandler(handler)


def test_progress_is_logged_at_intervals(clock: Clock, board: Board, logged: list[str]) -> None:
    with board.begin("ReMem: teacher", 100) as stage:
        steps(clock, stage, 1, 25, seconds=1.0)

    assert logged == [
        "ReMem: teacher, step 10 of 100, 1.00 steps/s, 90 s left",
        "ReMem: teacher, step 20 of 100, 1.00 steps/s, 80 s left",
    ]


def test_long_stages_have_a_line_a_minute(clock: Clock, board: Board, logged: list[str]) -> None:
    with board.begin("teacher", 4000) as stage:
        steps(clock, stage, 1, 3600, seconds=1.0)

    assert 60 <= len(logged) <= 120
    assert logged[-1] == "teacher, step 3589 of 4000, 1.00 steps/s, 7 min left"


def test_the_end_is_logged(clock: Clock, board: Board, logged: list[str]) -> None:
    with board.begin("teacher", 2) as stage:
        steps(clock, stage, 1, 2, seconds=4.0)

    assert logged == ["teacher, step 2 of 2, 0.25 steps/s, took 8 s"]


def test_nothing_is_logged_about_an_instant(clock: Clock, board: Board, logged: list[str]) -> None:
    with board.begin("Scan", 2, unit="image") as stage:
        steps(clock, stage, 1, 2, seconds=0.1)

    assert logged == []


def test_the_time_of_the_whole_run_is_added_once_it_is_known(
    clock: Clock, board: Board, logged: list[str]
) -> None:
    board.plan([Planned("a", 40, "kd"), Planned("b", 400, "kd")])

    with board.begin("a", 40) as stage:
        steps(clock, stage, 1, 11, seconds=1.0)

    assert logged == ["a, step 10 of 40, 1.00 steps/s, 30 s left, 7 min for the run"]


@pytest.mark.parametrize(
    ("steps_of_stage", "unit", "expected"),
    [
        (None, "MiB", "Download, 11 MiB, 1.00 MiB/s"),
        (30, "MiB", "Download, 11 of 30 MiB, 1.00 MiB/s, 19 s left"),
        (30, "image", "Download, image 11 of 30, 1.00 images/s, 19 s left"),
    ],
)
def test_what_is_counted_is_named(
    clock: Clock,
    board: Board,
    logged: list[str],
    steps_of_stage: int | None,
    unit: str,
    expected: str,
) -> None:
    with board.begin("Download", steps_of_stage, unit=unit) as stage:
        stage.advance(0)
        clock.now += 11.0
        stage.advance(11)

    assert logged == [expected]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "60 s"),
        (99, "99 s"),
        (137, "2 min"),
        (3599, "1 h"),
        (3900, "1 h 5 min"),
        (90000, "25 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def test_messages_of_a_command_have_a_time_and_no_prefix(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.set_verbosity(logging.INFO)

    with display.opened():
        display.use_terminal()
        _log(logging.INFO, "of ours")
        _log(logging.WARNING, "odd")
        _log(logging.ERROR, "wrong")
        logging.debug("not told")

    first, *rest = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d of ours", first)
    assert [line[9:] for line in rest] == ["warning: odd", "error: wrong"]


def _log(level: int, message: str, pathname: str = "site-packages/remem_jax/x.py") -> None:
    """Logs as a module at some path does."""
    record = python_logging.LogRecord(
        "absl", converter.absl_to_standard(level), pathname, 1, message, (), None
    )
    python_logging.getLogger("absl").handle(record)


@pytest.mark.parametrize(
    ("path", "level", "is_shown"),
    [
        ("site-packages/jax/x.py", logging.INFO, False),
        ("site-packages/jax/x.py", logging.WARNING, True),
        ("site-packages/tensorflow_datasets/x.py", logging.WARNING, False),
        ("site-packages/tensorflow_datasets/x.py", logging.ERROR, True),
        ("site-packages/orbax/x.py", logging.ERROR, False),
    ],
)
def test_libraries_are_heard_only_if_it_matters(
    capsys: pytest.CaptureFixture[str], path: str, level: int, is_shown: bool
) -> None:
    with display.opened():
        _log(level, "said", path)

    assert ("said" in capsys.readouterr().err) == is_shown


def test_a_run_of_a_library_leaves_nothing_to_come_behind(logged: list[str]) -> None:
    with contextlib.suppress(ZeroDivisionError), display.run():
        display.plan(["students"])
        display.until(60.0)
        _ = 1 / 0

    with display.stage("Download", 1) as stage:
        stage.started -= 10.0
        stage.advance(1)

    assert logged == ["Download, step 1 of 1, took 10 s"]


def test_debugging_keeps_the_prefix_of_absl(monkeypatch: pytest.MonkeyPatch) -> None:
    absl, stream = logging.get_absl_handler(), io.StringIO()
    monkeypatch.setattr(absl.python_handler, "stream", stream)
    monkeypatch.setattr(python_logging.getLogger(), "handlers", [absl])
    logging.set_verbosity(logging.DEBUG)

    with display.opened():
        display.use_terminal()
        _log(logging.INFO, "of ours")
        _log(logging.INFO, "of jax", "site-packages/jax/x.py")

    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ x\.py:1\] of ours", line)


def test_a_command_leaves_the_handlers_as_they_were() -> None:
    root, absl = python_logging.getLogger(), logging.get_absl_handler()
    before = list(root.handlers), list(absl.filters)

    with pytest.raises(ZeroDivisionError), display.opened():
        _ = 1 / 0

    assert (root.handlers, absl.filters) == before


def test_a_message_to_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)

    with display.opened(), warnings.catch_warnings(action="error"):
        _log(logging.WARNING, "odd")


@pytest.mark.parametrize(
    ("terminal", "term", "expected"),
    [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)],
)
def test_a_dumb_terminal_is_none(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, expected: bool
) -> None:
    stream: Any = types.SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)

    assert display.is_terminal({"TERM": term}) == expected


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("asyncio", "Task exception was never retrieved", False),
        ("asyncio", "Executing <Task> took 0.2 seconds", True),
    ],
)
def test_what_asyncio_says_of_pending_writes_is_not_shown(
    name: str, text: str, shown: bool
) -> None:
    record = python_logging.LogRecord(
        name, python_logging.ERROR, "base_events.py", 1, text, None, None
    )

    assert messages.is_ours(record) == shown
