"""The command `remem`: its table, its help and its exit codes."""

import importlib

import pytest

from remem_jax import commands

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
