"""docs/configuration.md is generated from the configs, and is up to date."""

import pathlib
from collections.abc import Callable

import pytest
from ml_collections import ConfigDict

from configs import analysis, quickstart, remem, settings, study
from remem_jax.methods import METHODS
from tools import make_reference


def test_the_page_is_up_to_date() -> None:
    assert make_reference.PAGE.read_text() == make_reference.reference(), (
        "A config has changed: run .venv/bin/python -m tools.make_reference."
    )


@pytest.mark.parametrize("module", [remem, quickstart, study, analysis])
def test_every_setting_has_one_row(module: object) -> None:
    page = make_reference.PAGE.read_text().partition("## Presets")[0]
    studies = page.partition("## Studies")[2]
    page = studies if module is study else page.replace(studies, "")
    config = module.get_config()  # type: ignore[attr-defined]
    axes = {f"grid.{name}" for name in make_reference.leaves(config.get("base", ConfigDict()))}
    if "base" in config:
        del config.base
    open_ended = ("models", "rows", "columns")  # Users choose the names of their entries.

    names = [
        name
        for name in make_reference.leaves(config)
        if name.split(".")[0] not in open_ended and name not in axes
    ]

    assert [name for name in names if page.count(f"| `config.{name}` |") != 1] == []


@pytest.mark.parametrize("make", [settings.run, settings.analysis])
def test_every_setting_has_a_comment(make: Callable[[], ConfigDict]) -> None:
    found = make_reference.comments(pathlib.Path(str(settings.__file__)))

    names = make_reference.leaves(make())

    assert [name for name in names if not found[name]] == []


def test_the_changes_of_a_preset_have_their_values_and_reasons() -> None:
    presets = make_reference.PAGE.read_text().partition("## Presets")[2]

    assert "| `config.teacher.rho` | `0.5` | `0.05` | The paper's 0.5 is for networks" in presets


@pytest.mark.parametrize("method", METHODS)
def test_the_page_lists_every_method(method: str) -> None:
    assert f"| `{method}` | {METHODS[method].title} |" in make_reference.PAGE.read_text()


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
