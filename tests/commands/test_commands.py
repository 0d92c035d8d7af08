"""The command `remem`: its table, its help and its exit codes."""

import importlib
import logging as python_logging

import pytest
from absl import logging

from remem_jax import commands, display
from remem_jax.export import command

LINES, COLUMNS = 24, 80  # A terminal's usual size.


def test_help_lists_all_commands_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < LINES
    assert all(len(line) < COLUMNS for line in lines)
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in commands.COMMANDS)


def test_an_unknown_command_is_refused_by_naming_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert commands.main(["distill"]) == 2
    assert "there is no command 'distill': " in capsys.readouterr().err


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_the_help_of_each_command_fits_a_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    module = importlib.import_module(commands.COMMANDS[name].module)
    with pytest.raises(SystemExit) as raised:
        module.main(["--help"])
    assert raised.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: remem {name} ")
    assert len(lines) <= LINES, f"{len(lines)} lines"


def test_a_message_is_shown_once_even_after_one_before_the_display(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_logging.getLogger(), "handlers", [])
    monkeypatch.setattr(command, "begin", lambda: None)
    assert commands.main(["clean"]) == 1

    logging.info("Of a library.")
    with display.opened():
        logging.warning("Of ours.")

    assert capsys.readouterr().err.count("Of ours.") == 1
