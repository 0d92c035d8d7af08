"""A whole run with every option of images and of training, on an imbalanced folder."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from PIL import Image

from remem_jax import models
from remem_jax.models.normalisation import IMAGENET
from remem_jax.report import protocol
from remem_jax.settings import check_remem
from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.weights import student_normalisation, students
from remem_jax.workflow import context
from remem_jax.workflow.remem import pipeline

pytestmark = pytest.mark.slow
STEPS = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "data": {
        "flip": "False",
        "metric": "mean_per_class",
        "balanced_sampling": 1.0,
        "augment": "rand",
        "augment_magnitude": 5,
        "color_jitter": 0.4,
        "random_erasing": 0.5,
        "evaluation_crop": 0.875,
    },
    "teacher": {"cutmix": 1.0, "mixup": 0.2, "class_balance": 0.9},
    "student": {"cutmix": 1.0, "mixup": 0.2, "class_balance": 0.9},
}
_OF_BOTH = {
    **{"optimizer": "adamw", "weight_decay": 0.05, "layer_decay": 0.7, "body_rate": 0.5},
    **{"ema": 0.9, "ema_warmup": True, "drop_path": 0.2, "dropout": 0.1},
}
TRAINING: dict[str, dict[str, Any]] = {
    "teacher": {**_OF_BOTH, "rho": 0.05, "ascent_examples": 4},
    "student": {
        **_OF_BOTH,
        "losses": ("kd", "features"),
        "pretrained_learning_rates": (0.001,),
        "label_smoothing": 0.1,
    },
}


@pytest.fixture
def run(small_run: context.Run, tmp_path: pathlib.Path) -> context.Run:
    """A run on images of two classes, 20 and 6, whose sizes differ."""
    rng = np.random.default_rng(0)
    for i in range(26):
        path = tmp_path / "images" / ("cat" if i < 20 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i % 3, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    config = small_run.config
    config.methods = ("remem",)
    config.save_every = config.log_every = 1
    config.teacher.steps, config.student.steps = (STEPS,), STEPS
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.evaluations = 1
    config.student.learning_rates = (0.05,)
    config.data.name, config.data.path = "folder", str(tmp_path / "images")
    config.data.cache = str(tmp_path / "cache")
    for group, options in (*OPTIONS.items(), *TRAINING.items()):
        config[group].update(options)
    config.student.init = str(_initial_student(config, tmp_path / "init.safetensors"))
    check_remem(config)
    dataset, loader = context.load_data(config, config.data, small_run.mesh)
    return small_run._replace(dataset=dataset, loader=loader)


def _initial_student(config: ConfigDict, path: pathlib.Path) -> pathlib.Path:
    """Writes pretrained weights of the student."""
    model = models.make(config.student.model, classes=5)
    variables = models.init(model, jax.random.key(7), config.data.image_size)
    students.save(path, variables, metadata=student_normalisation.texts(IMAGENET))
    return path


def _arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Runs leave a student and a teacher in `selected/`; returns their arrays."""
    student = safetensors.numpy.load_file(folder / "selected" / "remem_student.safetensors")
    return {**student, **np.load(folder / "selected" / "remem_teacher.npz")}


def _stopping(steps: int) -> Callable[[], bool]:
    """Returns a function that stops a run after this number of steps."""
    calls = iter(range(1, steps + 1))
    return lambda: next(calls, steps) == steps


def test_a_run_with_all_options_resumes_exactly(run: context.Run) -> None:
    whole, resumed = run.workdir / "whole", run.workdir / "resumed"
    pipeline.run_remem(run._replace(workdir=whole))

    for steps in (2, 4):  # Stops the teacher, and then the student, after two of four steps.
        with pytest.raises(loop.StoppedError):
            pipeline.run_remem(run._replace(workdir=resumed, stopping=_stopping(steps)))
    pipeline.run_remem(run._replace(workdir=resumed))

    expected, actual = _arrays(whole), _arrays(resumed)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
    record = results.read(whole / "results.json")
    assert record is not None
    assert record["students"] == (results.read(resumed / "results.json") or {})["students"]
    _check_report(record)


def _check_report(record: dict[str, Any]) -> None:
    """Checks that the report names every option, and that the crop is part of the results."""
    sentences = protocol.deviations(record["config"])
    for group, options in OPTIONS.items():
        for name in options:
            if (group, name) != ("student", "mixup"):  # It has a sentence of its own.
                assert any(text.startswith(f"{group}.{name} is ") for text in sentences), name
    steps = record["data"]["preprocessing"]
    assert (steps["crop"], steps["stored_size"]) == (0.875, 0)
    assert record["data"]["metric"] == "mean_per_class"
