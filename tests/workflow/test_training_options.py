"""Runs with averaging, AdamW, rates by layer, smoothing, dropout and stochastic depth."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from remem_jax import models
from remem_jax.models.normalisation import IMAGENET
from remem_jax.records import Hyperparameters
from remem_jax.settings import check_remem
from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.weights import student_normalisation, students
from remem_jax.workflow import context
from remem_jax.workflow.remem import pipeline, student_setup

pytestmark = pytest.mark.slow
STEPS = 4


@pytest.fixture
def run(small_run: context.Run) -> context.Run:
    """A run of one student, with four steps of each training."""
    config = small_run.config
    config.save_every = config.log_every = 1
    config.teacher.steps, config.student.steps = (STEPS,), STEPS
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.evaluations = 1
    config.student.learning_rates = (0.05,)
    return small_run


def _run(run: context.Run, folder: str, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Runs to the end in a folder; returns the selected models' arrays and the results."""
    copy = run._replace(workdir=run.workdir / folder, **changes)
    check_remem(copy.config)
    pipeline.run_remem(copy)
    return _arrays(copy.workdir / "selected"), results.read(copy.workdir / "results.json")


def _arrays(folder: pathlib.Path) -> dict[str, Any]:
    arrays = {}
    for path in sorted(folder.glob("*_student.safetensors")):
        loaded = safetensors.numpy.load_file(path)
        arrays |= {f"{path.name}:{name}": array for name, array in loaded.items()}
    for path in sorted(folder.glob("*_teacher.npz")):
        arrays |= {f"{path.name}:{name}": array for name, array in np.load(path).items()}
    return arrays


def test_averages_are_evaluated_kept_and_taught_from(run: context.Run) -> None:
    run.config.teacher.tuning = "lora"
    run.config.teacher.ema = run.config.student.ema = 1 - 1e-7

    averaged, recorded = _run(run, "averaged")

    # The average begins with the model after the first step, and here stays there.
    run.config.teacher.ema = run.config.student.ema = 0.0
    run.config.teacher.steps, run.config.student.steps = (1,), 1
    after_one, expected = _run(run, "after_one")
    assert averaged.keys() == after_one.keys()
    for name, array in after_one.items():
        np.testing.assert_allclose(averaged[name], array, atol=1e-5, err_msg=name)
    for kind in ("teachers", "students"):
        loss, expected_loss = (r[kind][0]["validation"]["loss"] for r in (recorded, expected))
        assert loss == pytest.approx(expected_loss, rel=1e-4)
    (row,), (expected_row,) = recorded["methods"], expected["methods"]
    for kind in ("teacher", "student"):
        assert row[kind]["test"]["loss"] == pytest.approx(expected_row[kind]["test"]["loss"], 1e-4)


def _stopping(steps: int) -> Callable[[], bool]:
    """Returns a function that stops a run after this number of steps."""
    calls = iter(range(1, steps + 1))
    return lambda: next(calls, steps) == steps


@pytest.fixture
def init(run: context.Run) -> pathlib.Path:
    """A file of pretrained weights of the student."""
    model = models.make(run.config.student.model, classes=5)
    path = run.workdir / "init.safetensors"
    variables = models.init(model, jax.random.key(7), run.config.data.image_size)
    students.save(path, variables, metadata=student_normalisation.texts(IMAGENET))
    return path


def test_a_run_with_all_options_resumes_exactly(run: context.Run, init: pathlib.Path) -> None:
    config = run.config
    config.methods = ("remem",)
    config.teacher.rho, config.teacher.ascent_examples = 0.05, 4
    config.teacher.drop_path, config.teacher.dropout = 0.2, 0.1
    config.student.init = str(init)
    config.student.losses = ("kd", "features")
    config.student.pretrained_learning_rates = (0.001,)
    config.student.label_smoothing = 0.1
    for settings in (config.teacher, config.student):
        settings.optimizer, settings.weight_decay = "adamw", 0.05
        settings.layer_decay, settings.body_rate = 0.7, 0.5
        settings.ema, settings.ema_warmup = 0.9, True

    uninterrupted, expected = _run(run, "uninterrupted")

    for steps in (2, 4):  # Stops the teacher, and then the students, after two of four steps.
        with pytest.raises(loop.StoppedError):
            _run(run, "resumed", stopping=_stopping(steps))
    resumed, recorded = _run(run, "resumed")
    assert uninterrupted.keys() == resumed.keys()
    for name, array in uninterrupted.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    assert recorded["students"] == expected["students"]
    assert recorded["teachers"] == expected["teachers"]


def test_only_pretrained_students_have_a_rate_of_the_body(
    run: context.Run, init: pathlib.Path
) -> None:
    run.config.methods = ("scratch", "alone")
    run.config.student.init = str(init)
    run.config.student.body_rate = 0.0
    setup = student_setup.make(run, None)
    with contextlib.closing(run.loader.train(8, 0, stage="student")) as batches:
        augmented = setup.augment(np.int32(0), next(batches))

    for pretrained in (True, False):
        point = student_setup.GridPoint(
            student_setup.LABELS, Hyperparameters(0.1, 1.0, 0.0, 0), pretrained
        )
        state = setup.first_state(point)
        before = jax.device_get(state.params)
        after, _ = setup.step(point)(state, *augmented, None, point.hyperparameters)
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after.params)
        assert moved["fc"]["kernel"]
        assert moved["conv1"]["kernel"] is not pretrained
