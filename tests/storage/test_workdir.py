"""The folder of a run: who may use it, and with what."""

import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import results, workdir

CONFIG: dict[str, Any] = {"seed": 0, "teacher": {"rho": 0.5, "steps": (1, 2)}, "student": {}}


def _claim(directory: pathlib.Path, config: dict[str, Any]) -> None:
    with workdir.claimed(directory, config):
        workdir.begin(directory, config, {})


def test_a_folder_is_made_with_those_above_it(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path / "a" / "b", CONFIG)

    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_records_its_config(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, {"seed": 0, "teacher": {"rho": 0.5}})

    assert results.read(tmp_path / "config.json") == {"seed": 0, "teacher": {"rho": 0.5}}


def test_a_folder_is_taken_again_with_its_config(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, CONFIG)

    _claim(tmp_path, CONFIG)  # Also where a tuple has become a list of JSON.


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"teacher": {"rho": 0.1, "steps": (1, 2)}}, "teacher.rho was 0.5, is 0.1"),
        ({"teacher": {"rho": 0.5, "steps": (1, 3)}}, "teacher.steps was [1, 2], is [1, 3]"),
        ({"new": True}, "new was None, is True"),
        ({"teacher": {"steps": (1, 2)}}, "teacher.rho was 0.5, is None"),
    ],
)
def test_a_folder_of_another_config_is_refused_by_the_settings_that_changed(
    tmp_path: pathlib.Path, changed: dict[str, Any], named: str
) -> None:
    _claim(tmp_path, CONFIG)

    with pytest.raises(SettingError, match=re.escape(f"another config: {named}. ")):
        _claim(tmp_path, CONFIG | changed)


def test_a_refused_config_leaves_the_record_of_the_first(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, CONFIG)
    with pytest.raises(SettingError):
        _claim(tmp_path, CONFIG | {"seed": 1})

    _claim(tmp_path, CONFIG)


def test_many_changed_settings_are_counted(tmp_path: pathlib.Path) -> None:
    _claim(tmp_path, dict.fromkeys("abcdefgh", 0))

    with pytest.raises(SettingError, match=r"a was 0, is 1; .*e was 0, is 1 and 3 more"):
        _claim(tmp_path, dict.fromkeys("abcdefgh", 1))


def test_a_folder_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    with (
        workdir.claimed(tmp_path, CONFIG),
        pytest.raises(SettingError, match=r"Another process.*--workdir"),
    ):
        _claim(tmp_path, CONFIG)


def test_a_folder_is_free_when_its_process_was_killed(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, pathlib, sys; from remem_jax.storage import workdir\n"
        "with workdir.claimed(pathlib.Path(sys.argv[1]), {}):\n"
        "    print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        with pytest.raises(SettingError, match="Another process"):
            _claim(tmp_path, {})
        process.kill()

    _claim(tmp_path, {})


def test_a_folder_is_free_after_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError), workdir.claimed(tmp_path, CONFIG):
        raise KeyError

    _claim(tmp_path, CONFIG)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: pathlib.Path, below: str) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(SettingError, match=r"Cannot write to .*file.*set --workdir"):
        _claim(tmp_path / "file" / below, CONFIG)


INPUTS = {"data": "c0ffee", "teacher": "decade"}


def test_the_same_inputs_are_accepted(tmp_path: pathlib.Path) -> None:
    workdir.begin(tmp_path, CONFIG, INPUTS)

    workdir.begin(tmp_path, CONFIG, INPUTS)


def test_other_inputs_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    workdir.begin(tmp_path, CONFIG, INPUTS)

    with pytest.raises(SettingError, match="have changed: data was c0ffee, is facade"):
        workdir.begin(tmp_path, CONFIG, INPUTS | {"data": "facade"})


def test_a_start_that_was_refused_leaves_the_folder_free(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError), workdir.claimed(tmp_path, CONFIG):
        raise SettingError("The folder of images is empty.")

    _claim(tmp_path, CONFIG | {"seed": 1})
