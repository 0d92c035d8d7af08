"""A study's trials as CSV and as a frame of pandas."""

import csv
import importlib
import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import pandas
import pytest

from remem_jax import study
from remem_jax.checks import SettingError
from remem_jax.report.study import trial_rows

WAITING: dict[str, Any] = {
    "trial": "b2",
    "number": 1,
    "row": "remem",
    "column": "digits",
    "seed": 1,
    "fraction": 1.0,
    "settings": {"rho": 0.5, "student.temperatures": [1.0, 2.0]},
    "state": "waiting",
    "reason": "",
    "teachers": [],
    "checkpoints": [],
    "selected": None,
    "validation": None,
    "teacher_steps": 0,
    "student_steps": 80,
    "students": 0,
    "seconds": None,
    "device": None,
    "worker": None,
    "folder": None,
}
CHECKPOINT = {"step": 40, "error": 0.5, "student": 0.6, "excess": 0.25, "temperature": 1.5}
DONE = WAITING | {
    "trial": "a1",
    "number": 0,
    "seed": 0,
    "state": "done",
    "checkpoints": [CHECKPOINT, CHECKPOINT | {"step": 120, "excess": 0.125, "sharpness": 0.75}],
    "selected": {
        "settings": {"teacher_step": 120, "student.loss": "kd"},
        "students": [
            {"seed": seed, "validation": {"top1": 0.5 + seed / 8}, "test": {"top1": 0.25}}
            for seed in (0, 1)
        ],
        "teacher": {"validation": {"top1": 0.75}, "test": {"top1": 0.875}},
    },
    "seconds": 4.0,
    "worker": "here",
    "folder": "/study/trials/a1",
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a running study: one trial is done, with two students, and one waits."""
    (tmp_path / "study.json").write_text(json.dumps({"trials": [DONE, WAITING]}))
    return tmp_path


def test_a_frame_has_a_row_for_each_trial_and_seed_of_the_student(folder: pathlib.Path) -> None:
    frame = study.load(folder)

    assert frame["trial"].tolist() == ["a1", "a1", "b2"]
    assert frame["student_seed"].tolist()[:2] == [0, 1]
    assert frame["state"].tolist() == ["done", "done", "waiting"]
    assert frame["student.validation.top1"].tolist()[:2] == [0.5, 0.625]
    assert math.isnan(frame["student.validation.top1"].iloc[2])
    assert frame["teacher.test.top1"].iloc[0] == 0.875
    assert frame["rho"].tolist() == [0.5] * 3
    assert frame["student.temperatures"].iloc[0] == (1.0, 2.0)  # It can be grouped by.
    assert frame.groupby("rho")["student.validation.top1"].mean().tolist() == [0.5625]


def test_what_was_measured_is_that_of_the_selected_teacher(folder: pathlib.Path) -> None:
    row = study.load(folder).iloc[0]

    assert (row["teacher_step"], row["teacher.information"]) == (120, -0.125)
    assert (row["teacher.temperature"], row["teacher.sharpness"]) == (1.5, 0.75)
    assert "teacher.radius" not in row


def test_trials_of_an_older_version_have_their_settings_and_state(
    folder: pathlib.Path,
) -> None:
    older = {k: v for k, v in DONE.items() if k not in ("number", "selected", "checkpoints")}
    (folder / "study.json").write_text(json.dumps({"trials": [older]}))

    frame = study.load(folder)

    assert frame[["trial", "state", "rho"]].to_numpy().tolist() == [["a1", "done", 0.5]]


def test_the_csv_has_the_rows_of_the_frame(folder: pathlib.Path) -> None:
    text = trial_rows.comma_separated(trial_rows.rows({"trials": [DONE, WAITING]}))
    (folder / "trials.csv").write_text(text)
    frame = study.load(folder)

    read = pandas.read_csv(folder / "trials.csv")

    assert list(read.columns) == list(frame.columns)
    numbers = ["seed", "rho", "student.validation.top1", "teacher.information", "seconds"]
    pandas.testing.assert_frame_equal(
        read[numbers].astype(float), frame[numbers].astype(float), check_exact=True
    )
    first = next(csv.DictReader(text.splitlines()))
    assert first["student.temperatures"] == "1.0, 2.0"


def test_names_of_workers_are_no_formulas_in_the_csv() -> None:
    text = trial_rows.comma_separated(trial_rows.rows({"trials": [DONE | {"worker": "=1+1\n"}]}))

    assert next(csv.DictReader(text.splitlines()))["worker"] == "'=1+1"


def test_a_folder_without_a_study_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=r"study\.json does not exist: there is no study"):
        study.load(tmp_path)


def test_the_error_without_pandas_says_what_to_install(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(SettingError, match=r"pip install '\.\[frame\]'"):
        study.load(folder)


def test_a_frame_is_loaded_without_jax(folder: pathlib.Path) -> None:
    program = (
        "import sys; from remem_jax import study; study.load(sys.argv[1]); "
        "sys.exit('jax' in sys.modules or 'optuna' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
