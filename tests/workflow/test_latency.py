"""The costs of a prediction are those of the files of a run, and are measured once."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from remem_jax import models
from remem_jax.weights import students
from remem_jax.workflow.remem import latency
from tests import tiny_run

CLASSES = 3
SIZE, PIXELS = tiny_run.TEACHER, tiny_run.IMAGE_SIZE


@pytest.fixture
def run(tmp_path: pathlib.Path, resnet4: str) -> pathlib.Path:
    """The folder of a run, with the models of two methods."""
    model = models.make(resnet4, classes=CLASSES)
    variables = models.init(model, jax.random.key(0), PIXELS)
    students.save(tmp_path / "selected" / "scratch_student.safetensors", variables)
    students.save(tmp_path / "selected" / "finetune_student.safetensors", variables)
    tiny_run.save_teacher(tmp_path / "selected" / "finetune_teacher.npz")
    return tmp_path


@pytest.fixture
def record(resnet4: str) -> dict[str, Any]:
    """What its results.json has of it."""
    return {
        "config": {"compute_dtype": "float32", "student": {"stem": "imagenet"}},
        "data": {"classes": CLASSES, "image_size": PIXELS},
        "models": {"student": resnet4, "student_architecture": {}, "teacher": "vit"},
        "methods": [
            {"method": "scratch", "student": {}, "teacher": None},
            {"method": "finetune", "student": {}, "teacher": {}},
        ],
    }


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "BATCHES", (1, 2))
    monkeypatch.setattr(latency, "_ROUNDS", (1, 3))


def test_files_and_parameters_are_those_in_the_folder(
    run: pathlib.Path, record: dict[str, Any]
) -> None:
    selected = run / "selected"
    arrays = safetensors.numpy.load_file(selected / "finetune_student.safetensors")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(array.size for name, array in arrays.items() if not name.endswith(statistics))
    with np.load(selected / "finetune_teacher.npz") as file:
        teacher = sum(file[name].size for name in file.files)

    found = latency.with_inference(run, record)

    files = [row["files"] for row in found["methods"]]
    assert files[0]["teacher"] is None
    for each in (files[0]["student"], files[1]["student"], files[1]["teacher"]):
        assert (run / each["path"]).stat().st_size == each["bytes"]
    assert found["inference"]["student"]["parameters"] == parameters
    assert found["inference"]["teacher"]["parameters"] == teacher
    for role in ("student", "teacher"):
        assert min(found["inference"][role]["milliseconds"].values()) > 0


def test_the_operations_of_a_teacher_are_those_of_one_image(
    run: pathlib.Path, record: dict[str, Any]
) -> None:
    patches, width = (PIXELS // SIZE.patch) ** 2, SIZE.features
    tokens = patches + 1
    products = patches * SIZE.patch**2 * 3 * width + width * CLASSES
    products += SIZE.depth * (12 * width**2 * tokens + 2 * tokens**2 * width)

    found = latency.with_inference(run, record)

    assert found["inference"]["teacher"]["operations"] == 2 * products


def test_a_run_is_measured_once(
    run: pathlib.Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = latency.with_inference(run, record)
    monkeypatch.setattr(latency, "measure", _never)

    assert latency.with_inference(run, record) == measured
    with pytest.raises(AssertionError):
        latency.with_inference(run, record | {"data": {"classes": CLASSES, "image_size": 8}})


def _never(*arguments: Any) -> Any:
    raise AssertionError(arguments)


def test_too_little_memory_does_not_end_a_run(
    run: pathlib.Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(latency, "measure", full)

    found = latency.with_inference(run, record)

    assert found["inference"] is None
    assert not json.loads(json.dumps(found))["methods"][0]["files"]["teacher"]


def test_models_take_turns() -> None:
    calls: list[str] = []

    times = latency._alternate({name: lambda name=name: calls.append(name) for name in "ab"})

    assert calls == ["a", "b"] * (1 + latency._ROUNDS[1])
    assert {len(seconds) for seconds in times.values()} == {latency._ROUNDS[1]}
