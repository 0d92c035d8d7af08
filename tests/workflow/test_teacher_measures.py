"""Calibration and flatness of the teachers of a run, and students of calibrated teachers."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from scipy import special
from sklearn import metrics

from remem_jax.records import Batch
from remem_jax.settings import check_remem
from remem_jax.storage import results
from remem_jax.workflow import context
from remem_jax.workflow.remem import (
    distill,
    finetune,
    outcome,
    pipeline,
    shared_teachers,
    student_setup,
    teacher_training,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def run(small_run: context.Run) -> context.Run:
    """A run of one method, with few steps of each training."""
    config = small_run.config
    config.methods, config.teacher.steps, config.student.steps = ("finetune",), (4,), 4
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.learning_rates, config.student.evaluations = (0.05,), 1
    config.student.losses = ("kd",)
    return small_run


def _trained(run: context.Run) -> finetune.Teachers:
    check_remem(run.config)
    teachers = pipeline.train_teachers(run, finetune.read_pretrained(run), "finetune")
    assert teachers is not None
    return teachers


def _set_flatten(run: context.Run, value: float | str) -> None:
    with run.config.ignore_type():  # The copy of a config has no references.
        run.config.student.flatten = value


def _examples(run: context.Run, split: str) -> tuple[jax.Array, np.ndarray]:
    """Returns the model inputs of a split, and the labels."""
    transform = context.evaluation_transform(run.loader, run.mesh)
    batches: list[Batch] = list(run.loader.evaluation(split, 16))
    images = np.concatenate([transform(batch.image)[batch.mask] for batch in batches])
    return jnp.asarray(images), np.concatenate([batch.label[batch.mask] for batch in batches])


def test_the_temperature_of_a_teacher_is_the_best_on_validation(run: context.Run) -> None:
    teachers = _trained(run)
    (record,) = teachers.records
    images, labels = _examples(run, "validation")
    logits = np.asarray(teachers.measure.apply(teachers.load(4), images), np.float64)

    def loss(temperature: float) -> float:
        probabilities = special.softmax(logits / temperature, axis=-1)
        return metrics.log_loss(labels, probabilities, labels=range(logits.shape[1]))

    found = record["calibration"]["temperature"]

    before, after = (record["calibration"]["validation"][name] for name in ("before", "after"))
    assert before["nll"] == pytest.approx(loss(1.0), rel=1e-4)
    assert before["nll"] == pytest.approx(record["validation"]["loss"], rel=1e-4)
    assert before["ece"] == pytest.approx(record["validation"]["calibration_error"], abs=1e-4)
    assert after["nll"] == pytest.approx(loss(found), rel=1e-4)
    assert all(loss(found) <= loss(factor * found) + 1e-9 for factor in (0.9, 1.1))


@pytest.mark.parametrize("stored", [False, True])
def test_students_of_a_calibrated_teacher_are_those_of_its_flattened_logits(
    run: context.Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))
    run.config.student.store_outputs = stored
    teachers = _trained(run)
    temperature = teachers.records[0]["calibration"]["temperature"]
    assert abs(temperature - 1) > 0.05
    students: dict[Any, Any] = {}
    for flatten in (temperature, "calibrated", 1.0):
        _set_flatten(run, flatten)
        check_remem(run.config)
        setup = student_setup.make(run, finetune.read_pretrained(run))
        copy = run._replace(workdir=run.workdir / str(flatten))
        (group,) = distill.from_teachers(copy, setup, teachers)
        students[flatten] = distill.kept(copy, setup, group["part"], 0)["params"]

    calibrated = jax.tree.leaves(students["calibrated"])
    for flattened, other in zip(jax.tree.leaves(students[temperature]), calibrated, strict=True):
        np.testing.assert_allclose(other, flattened, rtol=1e-4, atol=1e-6)
    plain = jax.tree.leaves(students[1.0])
    assert any(not np.allclose(a, b, atol=1e-5) for a, b in zip(plain, calibrated, strict=True))


def test_students_of_a_calibrated_teacher_reuse_its_stored_outputs(
    run: context.Run,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))
    logging.set_verbosity(logging.INFO)
    run.config.student.store_outputs = True
    teachers = _trained(run)
    for flatten in (1.0, "calibrated"):
        _set_flatten(run, flatten)
        setup = student_setup.make(run, finetune.read_pretrained(run))
        distill.from_teachers(run._replace(workdir=tmp_path / str(flatten)), setup, teachers)

    found = [line.partition("stored for ")[2] for line in caplog.messages if "stored for" in line]
    assert found == ["0 steps, and computed for 4.", "4 steps, and computed for 0."]


def test_the_flatness_of_a_teacher_is_that_of_all_training_images_at_once(
    run: context.Run,
) -> None:
    run.config.flatness.radius, run.config.flatness.batch_size = 0.1, 16
    teachers = _trained(run)
    images, labels = _examples(run, "train")

    def loss(params: Any) -> jax.Array:
        logits = teachers.measure.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params = teachers.load(4)["params"]
    value, gradient = jax.value_and_grad(loss)(params)
    scale = 0.1 / optax.tree.norm(gradient)
    worst = loss(jax.tree.map(lambda p, g: p + scale * g, params, gradient))
    measured = teachers.records[0]["flatness"]

    assert measured["loss"] == pytest.approx(float(value), rel=1e-4)
    assert measured["worst"] == pytest.approx(float(worst), rel=1e-4)
    assert measured["sharpness"] == pytest.approx(float(worst - value), rel=1e-2)


def test_flatness_may_be_measured_on_some_of_the_images(run: context.Run) -> None:
    run.config.flatness.radius, run.config.flatness.examples = 0.1, 20
    run.config.flatness.batch_size = 16
    teachers = _trained(run)
    images, labels = _examples(run, "train")
    images, labels = images[:20], labels[:20]
    logits = teachers.measure.apply(teachers.load(4), images)

    expected = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    assert teachers.records[0]["flatness"]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_the_head_alone_is_trained_first(run: context.Run) -> None:
    run.config.teacher.steps, run.config.teacher.probe_steps = (2, 4), 2
    teachers = _trained(run)
    start = teacher_training.start(run, finetune.read_pretrained(run), "finetune")

    moved = {
        step: jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), teachers.load(step)["params"], start.trainable
        )
        for step in (2, 4)
    }

    heads = {step: tree.pop("head") for step, tree in moved.items()}
    assert max(jax.tree.leaves(moved[2])) == 0
    assert max(jax.tree.leaves(moved[4])) > 0
    assert min(heads[2]["kernel"], heads[4]["kernel"]) > 0


def test_a_run_records_the_calibration_of_its_selected_teacher_on_test(run: context.Run) -> None:
    _set_flatten(run, "calibrated")
    teachers = _trained(run)
    setup = student_setup.make(run, finetune.read_pretrained(run))
    groups = distill.from_teachers(run, setup, teachers)

    concluded = outcome.conclude(run, setup, "finetune", teachers, groups)

    teacher = concluded.row["teacher"]
    assert (
        teacher["calibration"]["temperature"] == concluded.teachers[0]["calibration"]["temperature"]
    )
    before = teacher["calibration"]["test"]["before"]
    assert before["nll"] == pytest.approx(teacher["test"]["loss"], rel=1e-4)
    assert before["ece"] == pytest.approx(teacher["test"]["calibration_error"], abs=1e-4)


def test_a_run_that_began_its_teacher_alone_goes_on_alone(
    run: context.Run, tmp_path: pathlib.Path
) -> None:
    alone = _trained(run)

    again = _trained(run._replace(shared=tmp_path / "shared"))

    assert again.folder == alone.folder == run.workdir
    assert not (tmp_path / "shared").exists()


def test_runs_that_share_a_teacher_train_it_once(run: context.Run, tmp_path: pathlib.Path) -> None:
    first, second = (
        run._replace(workdir=tmp_path / name, shared=tmp_path / "shared") for name in "ab"
    )
    for trial in (first, second):
        trial.workdir.mkdir()
    trained = _trained(first)

    read = _trained(second)

    assert read.folder == trained.folder
    assert shared_teachers.is_trainer(first, trained.folder, "teachers/finetune")
    assert not shared_teachers.is_trainer(second, read.folder, "teachers/finetune")
    assert list((tmp_path / "shared").glob(shared_teachers.result_pattern("finetune")))
    assert not (second.workdir / "teachers").exists()


def test_a_run_that_waited_for_a_finished_stage_is_not_its_trainer(
    run: context.Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        run._replace(workdir=tmp_path / name, shared=tmp_path / "shared") for name in "ab"
    )
    with shared_teachers.home(first, "teachers/x") as home:
        folder = home.workdir
    take = shared_teachers._take

    def finished_meanwhile(*arguments: Any) -> bool:
        results.write(folder / "teachers/x/result.json", {})
        return take(*arguments)

    monkeypatch.setattr(shared_teachers, "_take", finished_meanwhile)
    with shared_teachers.home(second, "teachers/x"):
        pass

    assert shared_teachers.is_trainer(first, folder, "teachers/x")
    assert not shared_teachers.is_trainer(second, folder, "teachers/x")
