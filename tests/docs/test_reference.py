"""docs/configuration.md is what the configs say."""

import pathlib

import pytest

from configs import analysis, information, pretrain, quickstart, remem, study
from tools import make_reference


def test_the_page_is_what_the_tool_makes() -> None:
    assert make_reference.PAGE.read_text() == make_reference.reference(), (
        "A config has changed: run .venv/bin/python -m tools.make_reference."
    )


@pytest.mark.parametrize("module", [remem, quickstart, study, analysis, pretrain])
def test_every_setting_has_a_row(module: object) -> None:
    page = make_reference.PAGE.read_text()
    config = module.get_config()  # type: ignore[attr-defined]
    if "base" in config:
        del config.base
    open_ended = ("models", "rows", "columns")  # What is in them has names of its own.

    names = [name for name in make_reference.leaves(config) if name.split(".")[0] not in open_ended]

    assert [name for name in names if f"| `config.{name}` |" not in page] == []


def test_a_comment_beside_and_one_above_are_found(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(
        "config.one = 1  # Beside.\n"
        "# Above, on\n# two lines.\nconfig.two.three = (\n    2,  # In.\n)\n"
        "config.four, config.five = 4, 5\n"
    )

    assert make_reference.comments(path) == {
        "one": "Beside.",
        "two.three": "Above, on two lines. In.",
        "four": "",
        "five": "",
    }


def test_the_comments_of_the_information_are_found() -> None:
    found = make_reference.comments(pathlib.Path(str(information.__file__)))

    assert "[text]" in found["weight_decay"]
