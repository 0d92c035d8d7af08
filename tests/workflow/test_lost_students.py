"""Runs in which some students of a group diverge, or all of them."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from remem_jax.methods import SCRATCH
from remem_jax.storage import logs
from remem_jax.train import loop
from remem_jax.workflow.remem import distill, student_grid, student_setup
from tests import tiny_run
from tests.workflow.conftest import SIDE, Shared

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("resnet4")]
TOO_HIGH = 1e38  # A learning rate at which the logits overflow after a step.


def _config(*rates: float) -> ConfigDict:
    config = tiny_run.get_config()
    config.methods = ("scratch",)
    config.data.image_size = SIDE
    config.log_every, config.save_every = 1, 4
    config.student.batch_size = 8
    config.student.steps, config.student.evaluations = 4, 2
    config.student.warmup_steps = 0
    config.student.learning_rates = rates
    return config


@pytest.fixture(scope="module")
def setup(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> student_setup.StudentSetup:
    """The student setup, compiled once for all tests."""
    return student_setup.make(shared.run(tmp_path_factory.mktemp("setup"), _config(0.1)), None)


@pytest.fixture(scope="module")
def alone(
    shared: Shared, setup: student_setup.StudentSetup, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The record and the variables of a student that was trained alone."""
    run = shared.run(tmp_path_factory.mktemp("alone"), _config(0.1))
    (group,) = distill.without_teacher(run, setup, SCRATCH)
    return group["students"][0], distill.kept(run, setup, "students/scratch", 0)


def test_a_diverged_student_is_not_trained_further_and_affects_no_other(
    shared: Shared, setup: student_setup.StudentSetup, alone: Any, tmp_path: pathlib.Path
) -> None:
    rates: list[float] = []

    def step(state: Any, images: Any, labels: Any, targets: Any, settings: Any) -> Any:
        if isinstance(settings.learning_rate, float):  # False while operations are counted.
            rates.append(settings.learning_rate)
        return setup.steps[student_grid.LABELS](state, images, labels, targets, settings)

    counted = setup._replace(steps={student_grid.LABELS: step})
    with logs.RunLog(tmp_path) as log:
        run = shared.run(tmp_path, _config(TOO_HIGH, 0.1), log=log)
        stops = iter([False, False, True])
        with pytest.raises(loop.StoppedError):  # After the third step.
            distill.without_teacher(run._replace(stopping=lambda: next(stops)), counted, SCRATCH)
        before = rates.count(TOO_HIGH)
        (group,) = distill.without_teacher(run, counted, SCRATCH)

    assert rates.count(TOO_HIGH) == before <= 2
    assert rates.count(0.1) == 4
    lost, other = group["students"]
    assert (lost["diverged"], other["diverged"], group["diverged"]) == (True, False, None)
    assert lost["validation"]["loss"] is None
    expected, variables = alone
    assert other["validation"] == expected["validation"]
    kept = distill.kept(run, setup, "students/scratch", 1)
    jax.tree.map(np.testing.assert_array_equal, kept, variables)
    logged = [row["validation"] for row in logs.read(tmp_path) if "validation" in row]
    assert len(logged) == 2
    assert all(first is None and second for first, second in logged)


def test_a_group_whose_students_all_diverge_is_recorded(
    shared: Shared, setup: student_setup.StudentSetup, tmp_path: pathlib.Path
) -> None:
    config = _config(TOO_HIGH, 2 * TOO_HIGH, 0.1)
    config.student.group = 2
    config.choose_on_test = True

    lost, finite = distill.without_teacher(shared.run(tmp_path, config), setup, SCRATCH)

    assert lost["diverged"]["step"] <= 2
    assert lost["seconds"] > 0
    assert [student["test"] for student in lost["students"]] == [None, None]
    assert finite["students"][0]["test"]["top1"] is not None
    (chosen,) = distill.select([*lost["students"], *finite["students"]], "top1", split="validation")
    assert chosen["learning_rate"] == 0.1


def test_operations_count_only_finite_students(
    shared: Shared, setup: student_setup.StudentSetup, tmp_path: pathlib.Path
) -> None:
    run = shared.run(tmp_path, _config(0.1, 0.2))
    grid = student_grid.label_grid(run, SCRATCH)
    job = distill._job(run, setup, grid, dict(enumerate(grid.points)), lambda *_: None)
    batch = next(run.loader.train(8, 0, stage="student"))
    both = job.operations(job.shapes, batch)

    job.lost.add(0)

    assert job.operations(job.shapes, batch) == both / 2


def test_an_infinite_loss_with_a_finite_state_loses_no_student(
    shared: Shared, setup: student_setup.StudentSetup, tmp_path: pathlib.Path
) -> None:
    # The loss of a batch can overflow although gradient and state are finite.
    run = shared.run(tmp_path, _config(0.1, 0.2))
    original = setup.steps[student_grid.LABELS]

    def step(state: Any, *inputs: Any) -> Any:
        after, metrics = original(state, *inputs)
        rate = inputs[-1].learning_rate  # Traced while operations are counted.
        overflows = isinstance(rate, float) and rate == 0.1
        return after, {**metrics, **({"loss": np.inf, "fault": 3} if overflows else {})}

    overflowing = setup._replace(steps={student_grid.LABELS: step})

    (group,) = distill.without_teacher(run, overflowing, SCRATCH)

    assert not any(student["diverged"] for student in group["students"])
