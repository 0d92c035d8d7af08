"""The checks enforce the ranges that the comments of configs/settings.py state."""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import analysis, quickstart, study
from configs import settings as defaults
from remem_jax import settings
from remem_jax.checks import SettingError
from remem_jax.settings import analysis as analysis_checks
from remem_jax.settings import values
from remem_jax.study import space
from tools import make_reference

_FILE = pathlib.Path(str(defaults.__file__))
_NUMBER = r"(-?\d+(?:\.\d+)?(?:\*\*\d+)?)"
_CHOICES = re.compile(r"one of ((?:\"[^\"]*\"(?: \([^)]*\))?(?:, )?)+)")
# Numbers without a range: any value is valid, or the network limits them.
_ANY = {"table", "expertness.layers", "criticality.layers"}
# Their limit is another setting or the grid.
_RELATIVE = {"information.steps", "grace_seconds", "grid", "search.near"}


def _run() -> ConfigDict:
    config = quickstart.get_config()
    config.information.seeds = (0,)
    return config


def _analysis() -> ConfigDict:
    return analysis.get_config("digits,init=bundled:Ti/16")


WORKFLOWS: dict[str, tuple[Callable[[], ConfigDict], Callable[[ConfigDict], None]]] = {
    "run": (_run, settings.check_remem),
    "analysis": (_analysis, analysis_checks.check),
    "study": (lambda: study.get_config("digits"), space.check),
}


def _documented(workflow: str) -> Iterator[tuple[str, Any, str]]:
    """Yields name, default and comment of the settings that a workflow adds to those of a run."""
    run_settings = dict(values.leaves(defaults.run())) if workflow != "run" else {}
    axes = {f"grid.{name}" for name in run_settings}  # Their comments are those of the settings.
    config = WORKFLOWS[workflow][0]()
    if workflow == "study":
        del config.base, config.rows, config.columns
    texts = make_reference.comments(_FILE, "study" if workflow == "study" else "")
    for name, value in values.leaves(config):
        known = name in axes or (name in run_settings and workflow != "study")
        if not known and not name.startswith("models."):
            yield name, value, texts[name]


def _limits(text: str) -> Iterator[tuple[str, float]]:
    """Yields the limits in a comment as phrases and numbers."""
    for phrase, number in re.findall(rf"(?i)\b(at least|above|below|at most) {_NUMBER}", text):
        yield phrase.lower(), _number(number)
    for low, high in re.findall(rf"(?i)\bfrom {_NUMBER} to {_NUMBER}", text):
        yield "at least", _number(low)
        yield "at most", _number(high)


def _number(text: str) -> float:
    base, _, power = text.partition("**")
    return float(base) ** int(power) if power else float(base)


def _cases(workflow: str) -> Iterator[tuple[str, str, Any, bool]]:
    """Yields workflow, setting, value, and whether the value is in the documented range."""
    for name, default, text in _documented(workflow):
        element = default[0] if isinstance(default, tuple) and default else default
        for phrase, limit in _limits(text):
            step = 1.0 if isinstance(element, int) or name.endswith("seeds") else 1e-6
            down = phrase in ("at least", "below")
            beyond = limit - step if down else limit + step
            excludes = phrase in ("above", "below")
            for value, allowed in ((limit, not excludes), (beyond, excludes)):
                typed = int(value) if step == 1.0 else value
                yield workflow, name, _like(default, typed), allowed
        for choices in _CHOICES.findall(text):
            known = re.findall(r"\"([^\"]*)\"", choices)
            yield workflow, name, _like(default, "something else"), False
            yield from ((workflow, name, _like(default, choice), True) for choice in known)


def _like(default: Any, value: Any) -> Any:
    """Returns the value, as a tuple if the default is one."""
    if not isinstance(default, tuple):
        return value
    pair = default and isinstance(default[0], float) and len(default) == 2
    return (value, value) if pair else (value,)


CASES = [case for workflow in WORKFLOWS for case in _cases(workflow)]


@pytest.mark.parametrize(("workflow", "name", "value", "allowed"), CASES)
def test_the_check_of_a_setting_matches_the_range_in_its_comment(
    workflow: str, name: str, value: Any, allowed: bool
) -> None:
    make, check = WORKFLOWS[workflow]
    config = make()
    place, (*groups, last) = config, name.split(".")
    for group in groups:
        place = place[group]
    with config.ignore_type():
        place[last] = value
        if groups[-1:] in (["lora"], ["adapter"]):
            config.teacher.tuning = {"lora": "lora", "adapter": "adapter_pfeiffer"}[groups[-1]]
    message = ""

    try:
        check(config)
    except SettingError as error:
        message = str(error)

    subject = rf"config\.({re.escape(name)}\b|{re.escape('.'.join(groups))}: {last}\b)"
    kind = r"must (be (at least|above|from|a whole|one of|0 <)|lie)"
    if allowed:
        assert not re.search(rf"{subject}.*{kind}", message), message
    else:
        assert re.search(subject, message), message or "accepted"


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_numeric_setting_documents_a_range(workflow: str) -> None:
    def is_number(value: Any) -> bool:
        element = value[0] if isinstance(value, tuple) and value else value
        return isinstance(element, int | float) and not isinstance(element, bool)

    without = {
        name
        for name, default, text in _documented(workflow)
        if is_number(default) and not list(_limits(text)) and not name.startswith(tuple(_RELATIVE))
    }

    assert without <= _ANY
