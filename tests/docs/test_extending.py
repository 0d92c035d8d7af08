"""The examples of docs/extending run as they stand there."""

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

from configs import remem
from remem_jax import data, mesh, models, settings
from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.train import objectives
from tests.models import test_every_student

CHANGED = (  # Of JAX; by a run, and for it.
    "jax_compilation_cache_dir",
    "jax_disable_most_optimizations",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
EVERY_STUDENT = [
    getattr(test_every_student, name)
    for name in dir(test_every_student)
    if name.startswith("test_")
]
PAGES = pathlib.Path(__file__).parents[2] / "docs" / "extending"


def _blocks(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE
    )


def _program(page: str, path: pathlib.Path) -> pathlib.Path:
    path.write_text(_blocks(page)[0])
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What these runs compile: of one teacher, mostly the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    tmp_path: pathlib.Path,
    cache: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed_dtypes: None,
) -> Iterator[Any]:
    """Runs the program of a page in an empty folder; the results of the run that it makes.

    The tables that it adds to are what they were, afterwards. In place of a ResNet-18, which takes
    long to compile, the pages have the student of the first of them; and one device.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMEM_CACHE", str(cache))
    small = runpy.run_path(str(_program("student.md", tmp_path / "small.py")))["STUDENT"]
    students = mock.patch.dict(models.STUDENTS, {"resnet18": small})
    students.start()
    monkeypatch.setattr(objectives, "STUDENT_LOSSES", dict(objectives.STUDENT_LOSSES))
    monkeypatch.setattr(data, "CUSTOM", dict(data.CUSTOM))
    monkeypatch.setattr(data, "NAMES", data.NAMES)
    one = functools.partial(mesh.make_mesh, jax.devices()[:1])
    monkeypatch.setattr(mesh, "make_mesh", one)
    kept = {name: jax.config.values[name] for name in CHANGED}
    compilation_cache.reset_cache()  # Or it keeps to where it was.
    jax.config.update("jax_disable_most_optimizations", True)  # Compiles in half of the time.

    def finish(page: str, name: str) -> dict[str, Any]:
        runpy.run_path(str(_program(page, tmp_path / f"{name}.py")), run_name="__main__")
        return json.loads((tmp_path / "runs" / name / "results.json").read_text())

    yield finish
    students.stop()
    for name, value in kept.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_new_student_learns(run: Any) -> None:
    found = run("student.md", "three_layers")

    assert found["models"]["student"] == "three_layers"
    (scratch, taught) = found["methods"]
    assert taught["student"]["test"]["agreement"] > 0
    assert scratch["student"]["validation"]["top1"] > 0.15  # Of ten classes, chance is 0.1.


@pytest.mark.parametrize("test", EVERY_STUDENT, ids=lambda test: test.__name__)
def test_the_new_student_passes_the_tests_of_every_student(
    test: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = runpy.run_path(str(_program("student.md", tmp_path / "three_layers.py")))
    monkeypatch.setitem(models.STUDENTS, "three_layers", names["STUDENT"])

    test("three_layers")


def test_the_new_data_set_is_trained_on(run: Any) -> None:
    found = run("data_set.md", "zipped")

    assert found["data"]["title"] == "digits"
    assert found["data"]["examples"]["test"] == 100
    assert found["data"]["classes"] == 10


def test_the_new_loss_has_students_beside_those_of_kd(run: Any) -> None:
    found = run("loss.md", "logit_error")

    assert {student["loss"] for student in found["students"]} == {"kd", "logit_error"}
    assert not any(student["diverged"] for student in found["students"])


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
        ("loss.md", "remem_jax/train/objectives.py"),
    ],
)
def test_a_page_names_the_file_of_the_table(page: str, table: str) -> None:
    assert f"`{table}`" in (PAGES / page).read_text()
    assert (PAGES.parents[1] / table).is_file()
