"""Runs with averaging and with rates by layer; test_image_options.py has all options at once."""

import contextlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models.normalisation import IMAGENET
from remem_jax.records import Hyperparameters
from remem_jax.settings import check_remem
from remem_jax.weights import student_normalisation, students
from remem_jax.workflow import context
from remem_jax.workflow.remem import (
    distill,
    finetune,
    student_grid,
    student_setup,
)

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


class Trained(NamedTuple):
    """The models of one method.

    Attributes:
        teacher: Variables of the last teacher, as saved.
        students: Variables of the best students, as saved.
        records: Records of teachers and students, with validation metrics.
    """

    teacher: Any
    students: list[Any]
    records: list[dict[str, Any]]


def _train(
    run: context.Run, folder: str, setup: student_setup.StudentSetup, **changes: Any
) -> Trained:
    """Trains the teachers and students of the run's method in a folder."""
    copy = run._replace(workdir=run.workdir / folder, **changes)
    (method,) = copy.config.methods
    teachers = finetune.finetune(copy, finetune.read_pretrained(copy), method)
    (group,) = distill.from_teachers(copy, setup, teachers)
    best = distill.select(group["students"], copy.dataset.metric, split="validation")
    students = [distill.kept(copy, setup, group["part"], each["student"]) for each in best]
    teacher = teachers.load(teachers.records[-1]["step"])
    return Trained(teacher, students, [*teachers.records, *group["students"]])


def _setup(run: context.Run) -> student_setup.StudentSetup:
    """Checks the settings, and builds the students, which several runs can share."""
    check_remem(run.config)
    return student_setup.make(run, finetune.read_pretrained(run))


def test_averages_are_evaluated_kept_and_taught_from(run: context.Run) -> None:
    run.config.teacher.tuning = "lora"
    run.config.teacher.ema = run.config.student.ema = 1 - 1e-7
    averaged = _train(run, "averaged", _setup(run))

    # The average begins with the model after the first step, and here stays there.
    run.config.teacher.ema = run.config.student.ema = 0.0
    run.config.teacher.steps, run.config.student.steps = (1,), 1
    after_one = _train(run, "after_one", _setup(run))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        (averaged.teacher, averaged.students),
        (after_one.teacher, after_one.students),
    )
    for record, expected in zip(averaged.records, after_one.records, strict=True):
        assert record["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], 1e-4)


@pytest.fixture
def init(run: context.Run) -> pathlib.Path:
    """A file of pretrained weights of the student."""
    model = models.make(run.config.student.model, classes=5)
    path = run.workdir / "init.safetensors"
    variables = models.init(model, jax.random.key(7), run.config.data.image_size)
    students.save(path, variables, metadata=student_normalisation.texts(IMAGENET))
    return path


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
        point = student_grid.GridPoint(
            student_grid.LABELS, Hyperparameters(0.1, 1.0, 0.0, 0), pretrained
        )
        state = setup.first_state(point)
        before = jax.device_get(state.params)
        after, _ = setup.step(point)(state, *augmented, None, point.hyperparameters)
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after.params)
        assert moved["fc"]["kernel"]
        assert moved["conv1"]["kernel"] is not pretrained
