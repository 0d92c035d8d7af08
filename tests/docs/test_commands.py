"""Every command in the docs names settings that there are, with values of their types."""

import importlib
import pathlib
import re
import shlex
import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from remem_jax import commands
from remem_jax.settings import unused
from remem_jax.study import unused as of_study
from tools import make_reference

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# Whose settings a text names alone.
SPECS = ("configs/remem.py", "configs/study.py", "configs/analysis.py:digits", "configs/own.py")
RUN = "remem_jax.main"
BATCH = re.compile(r"^sbatch .*?tools/slurm/\w+\.sbatch")
REMEM = re.compile(r"^(?:\.venv/bin/)?remem (\w+)(.*?)(?: >.*)?$")  # Without a redirection.


def _lines(page: pathlib.Path) -> list[str]:
    """Lines of indented or fenced blocks; those that go on over a line are put together."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += [
        line
        for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    return lines


def _commands(page: pathlib.Path) -> list[list[str]]:
    """Commands that start a run; a batch script gives its arguments to one."""
    lines = [BATCH.sub(RUN, line) for line in _lines(page)]
    return [shlex.split(line, comments=True) for line in lines if RUN in line]


def _settings(spec: str) -> dict[str, Any]:
    file, _, options = spec.partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return make_reference.leaves(module.get_config(*[options] if options else []))


KNOWN = {spec: set(_settings(spec)) for spec in SPECS}
RUNS = [
    pytest.param(command, id=f"{page.name}-{i}")
    for page in PAGES
    for i, command in enumerate(_commands(page))
    if "..." not in command
]


def _apply(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config of a command line; raises where a setting is not there, or of another type."""
    arguments = ["main", *arguments]
    monkeypatch.setattr(sys, "argv", arguments)  # ml_collections looks there too.
    monkeypatch.chdir(ROOT)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    rest = values(arguments)
    assert rest == ["main"]
    return values["config"].value


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
@pytest.mark.parametrize("command", RUNS)
def test_a_command_can_be_parsed(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command[command.index(RUN) + 1 :]

    config = _apply(arguments, monkeypatch)

    assert config.workflow in ("distil", "remem", "study", "analysis")
    assert any(one.startswith("--workdir=") for one in arguments)
    given = [_name(one) for one in arguments if one.startswith("--config.")]
    if config.workflow != "distil":  # What is not planned has an effect or not.
        (of_study if config.workflow == "study" else unused).check(config, given)


OF_REMEM = [
    pytest.param(match[1], match[2], id=f"{page.name}-{match[1]}-{i}")
    for page in PAGES
    for i, line in enumerate(_lines(page))
    if (match := REMEM.match(line))
]


@pytest.mark.parametrize(("name", "arguments"), OF_REMEM)
def test_a_command_of_remem_can_be_parsed(name: str, arguments: str) -> None:
    module = importlib.import_module(commands.COMMANDS[name].module)

    _, rest = module._parser().parse_known_args(shlex.split(arguments, comments=True))

    assert all(name == "distil" and one.startswith("--config.") for one in rest)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_fits_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    module = importlib.import_module(commands.COMMANDS[name].module)

    lines = module._parser().format_help().splitlines()

    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: remem {name} ")


def test_commands_of_remem_are_found() -> None:
    assert {case.values[0] for case in OF_REMEM} == {*commands.COMMANDS}
    assert len(commands._help().splitlines()) <= 24


def test_commands_are_found() -> None:
    assert len(RUNS) > 20


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_the_text_are_there(
    page: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = sorted(set(re.findall(r"`(--config\.[a-z_.]+(?:=(?:\"[^\"`]*\"|[^ `]+))?)`", text)))

    for setting in (one for one in named if not one.endswith("...")):
        (argument,) = shlex.split(setting)
        of = next((spec for spec, known in KNOWN.items() if _name(argument) in known), SPECS[0])
        assert _name(argument) in KNOWN[of], argument
        if "=" in argument:
            _apply([f"--config={of}", argument], monkeypatch)


def _name(argument: str) -> str:
    return argument.removeprefix("--config.").partition("=")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_files_in_the_text_are_there(page: pathlib.Path) -> None:
    named = set(
        re.findall(r"(?:configs|tools|tests|remem_jax)/[\w/]+\.(?:py|ipynb)", page.read_text())
    )
    made = {"remem_jax/models/three_layers.py", "remem_jax/data/custom/zipped.py"}  # By the reader.

    assert [one for one in sorted(named - made) if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_called_are_there(page: pathlib.Path) -> None:
    called = set(re.findall(r"python -m ((?:tools|remem_jax)[\w.]*)", page.read_text()))

    for name in called:
        place = ROOT / name.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), name
