"""The examples of docs/extending run as printed."""

import functools
import json
import pathlib
import re
import runpy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from configs import quickstart, remem
from remem_jax import data, mesh, models, settings, workflow
from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.study import space, worker
from remem_jax.train import student_losses
from remem_jax.workflow.remem import cost
from tests import tiny_run
from tests.models import test_every_student

CHANGED = (  # Options of JAX that a run, or this module, changes.
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
EVERY_STUDENT = [
    getattr(test_every_student, name)
    for name in dir(test_every_student)
    if name.startswith("test_") and name != "test_the_docs_list_the_student"
]
GET_CONFIG = quickstart.get_config  # The original; a fixture replaces it.
PAGES = pathlib.Path(__file__).parents[2] / "docs" / "extending"


def _blocks(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE
    )


def _runnable(page: str) -> str:
    """The program of a page, which has excerpts of modules too."""
    return next(block for block in _blocks(page) if block.startswith('"""'))


def _program(page: str, path: pathlib.Path) -> pathlib.Path:
    path.write_text(_runnable(page))
    return path


def _config(teacher: pathlib.Path) -> ConfigDict:
    """Returns the quick start's settings with a small teacher and few steps."""
    config = GET_CONFIG()
    config.teacher.variant, config.teacher.init = "", str(teacher)
    config.teacher.steps, config.student.steps = (4,), 4
    config.teacher.warmup_steps = config.student.warmup_steps = 2
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A compilation cache for these runs, which share a teacher."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    tmp_path: pathlib.Path,
    cache: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed_dtypes: None,
) -> Iterator[Any]:
    """A function that runs the program of a page in an empty folder, and returns its results.

    Afterwards the tables that it added to are restored. The pages train on one device, with a small
    teacher, and with the student of the first page in place of the quick start's, which is slow to
    compile.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMEM_CACHE", str(cache))
    small = runpy.run_path(str(_program("student.md", tmp_path / "small.py")))["STUDENT"]
    students = mock.patch.dict(models.STUDENTS, {"mobilenetv3_small_100": small})
    students.start()
    teacher = tiny_run.save_teacher(tmp_path / "teacher.npz")
    monkeypatch.setattr(quickstart, "get_config", functools.partial(_config, teacher))
    monkeypatch.setattr(student_losses, "LOSSES", dict(student_losses.LOSSES))
    monkeypatch.setattr(data, "CUSTOM", dict(data.CUSTOM))
    monkeypatch.setattr(data, "NAMES", data.NAMES)
    one = functools.partial(mesh.make_mesh, jax.devices()[:1])
    monkeypatch.setattr(mesh, "make_mesh", one)
    kept = {name: jax.config.values[name] for name in CHANGED}
    compilation_cache.reset_cache()  # Or it keeps to where it was.

    def finish(page: str, name: str) -> dict[str, Any]:
        runpy.run_path(str(_program(page, tmp_path / f"{name}.py")), run_name="__main__")
        return json.loads((tmp_path / "runs" / name / "results.json").read_text())

    yield finish
    students.stop()
    for name, value in kept.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_new_student_learns(run: Any) -> None:
    results = run("student.md", "three_layers")

    assert results["models"]["student"] == "three_layers"
    (scratch, distilled) = results["methods"]
    assert distilled["student"]["test"]["agreement"] > 0
    assert scratch["student"]["validation"]["top1"] > 0.15  # Chance is 0.1.


@pytest.mark.parametrize("test", EVERY_STUDENT, ids=lambda test: test.__name__)
def test_the_new_student_passes_the_tests_of_every_student(
    test: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = runpy.run_path(str(_program("student.md", tmp_path / "three_layers.py")))
    monkeypatch.setitem(models.STUDENTS, "three_layers", names["STUDENT"])

    test("three_layers")


def test_the_new_data_set_trains(run: Any) -> None:
    results = run("data_set.md", "zipped")

    assert results["data"]["title"] == "digits"
    assert results["data"]["examples"]["test"] == 100
    assert results["data"]["classes"] == 10


def test_the_new_loss_trains_beside_kd(run: Any) -> None:
    results = run("loss.md", "logit_error")

    assert {student["loss"] for student in results["students"]} == {"kd", "logit_error"}
    assert not any(student["diverged"] for student in results["students"])


def test_the_new_record_is_a_data_set_by_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    exec(_blocks("data_set.md")[1], names)
    monkeypatch.setitem(registry.RECORDS, "beans", names["BEANS"])
    monkeypatch.setattr(data, "NAMES", (*data.NAMES, "beans"))

    settings.check_remem(remem.get_config("beans"))

    with pytest.raises(SettingError, match=r"beans:0.* is not prepared"):
        data.open_source("beans", path="", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("student.md", "remem_jax/models/students.py"),
        ("data_set.md", "remem_jax/data/__init__.py"),
        ("data_set.md", "remem_jax/data/registry.py"),
        ("data_set.md", "remem_jax/data/tfds/obtaining.py"),
        ("loss.md", "remem_jax/train/student_losses.py"),
    ],
)
def test_a_page_names_the_file_of_the_table(page: str, table: str) -> None:
    assert f"`{table}`" in (PAGES / page).read_text()
    assert (PAGES.parents[1] / table).is_file()


def test_the_new_study_is_planned(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "absl")
    config = runpy.run_path(str(_program("study.md", tmp_path / "smoothing.py")))["get_config"]()
    config.plan_only = True
    step = cost.Step(1.0, 1.0)
    monkeypatch.setattr(workflow, "measure_speed", lambda run: cost.Speed(step, step, step))
    monkeypatch.setattr(workflow, "show_plan", lambda run: None)

    worker.run(config, tmp_path / "study")

    assert "Smoothing on EuroSAT: 24 trials" in caplog.text
    runs = {trial.row: trial.config for trial in space.trials(config) if trial.column == "resnet"}
    assert [run.teacher.label_smoothing for run in runs.values()] == [0.0, 0.0, 0.1, 0.0]
    assert {run.student.model for run in runs.values()} == {"resnet18"}


def test_the_frame_of_the_new_study_has_an_accuracy_for_each_row_and_seed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [
        {
            **dict.fromkeys(("trial", "reason", "seconds", "device", "worker", "folder")),
            **{"row": row, "column": "resnet", "seed": seed, "fraction": 1.0, "settings": {}},
            **{"state": "done", "teacher_steps": 1, "student_steps": 1, "students": 1},
            "selected": {"students": [{"test": {"top1": accuracy + seed / 4}}]},
        }
        for seed in (0, 1)
        for row, accuracy in (("finetune", 0.125), ("remem", 0.25))
    ]
    folder = tmp_path / "studies" / "smoothing"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"trials": trials}))
    monkeypatch.chdir(tmp_path)
    (program,) = [block for block in _blocks("study.md") if "study.load(" in block]

    exec(program, {})

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["row", "finetune", "remem"],
        ["column", "seed"],
        ["resnet", "0", "0.125", "0.25"],
        ["1", "0.375", "0.50"],
    ]
