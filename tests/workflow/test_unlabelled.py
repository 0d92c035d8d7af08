"""Whole runs whose students also learn from images without labels."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from remem_jax.data import sources
from remem_jax.random_streams import Stage
from remem_jax.records import Batches
from remem_jax.report import protocol
from remem_jax.report.run import data_summary
from remem_jax.settings import check_remem
from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.train.student_losses import LOSSES
from remem_jax.workflow import context, provenance
from remem_jax.workflow.remem import pipeline, plan_only, targets

STEPS = 4


@pytest.fixture
def run(small_run: context.Run, tmp_path: pathlib.Path) -> context.Run:
    """A run on 20 images of two classes, with 30 images without labels."""
    rng = np.random.default_rng(0)
    for i in range(50):
        labelled = tmp_path / "images" / ("cat" if i % 2 else "dog")
        path = (labelled if i < 20 else tmp_path / "more") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    config = small_run.config
    config.methods = ("finetune",)
    config.save_every = config.log_every = 1
    config.teacher.steps, config.student.steps = (STEPS,), STEPS
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.evaluations = 1
    config.student.learning_rates = (0.05,)
    config.data.name, config.data.path = "folder", str(tmp_path / "images")
    config.data.cache = str(tmp_path / "cache")
    config.data.unlabelled = str(tmp_path / "more")
    return _reloaded(small_run)


def _reloaded(run: context.Run, **changes: Any) -> context.Run:
    """Loads the data of a run again, after changes of `config.data`."""
    run.config.data.update(changes)
    check_remem(run.config)
    dataset, loader = context.load_data(run.config, run.config.data, run.mesh)
    return run._replace(dataset=dataset, loader=loader)


def _watched(run: context.Run, labels: dict[Stage, list[np.ndarray]]) -> context.Run:
    """Records the labels of all batches that a run reads, by stage."""

    def watched(read: Callable[..., Batches]) -> Any:
        def batches(batch_size: int, first_step: int, *, stage: Stage) -> Batches:
            for batch in read(batch_size, first_step, stage=stage):
                labels.setdefault(stage, []).append(np.asarray(batch.label))
                yield batch

        return batches

    loader = run.loader._replace(
        train=watched(run.loader.train), distillation=watched(run.loader.distillation)
    )
    return run._replace(loader=loader)


def _finished(run: context.Run, folder: str, **student: Any) -> dict[str, Any]:
    """Finishes a run in a folder of its own; returns its results."""
    run = run._replace(workdir=run.workdir / folder)
    run.config.student.update(student)
    check_remem(run.config)
    pipeline.run_remem(run)
    record = results.read(run.workdir / "results.json")
    assert record is not None
    return record


def _student(run: context.Run, folder: str, method: str = "finetune") -> dict[str, np.ndarray]:
    path = run.workdir / folder / "selected" / f"{method}_student.safetensors"
    return safetensors.numpy.load_file(path)


def _stopping(steps: int) -> Callable[[], bool]:
    """Returns a function that stops a run after this number of steps."""
    calls = iter(range(1, steps + 1))
    return lambda: next(calls, steps) == steps


@pytest.mark.slow
def test_every_loss_learns_from_them_and_teachers_never_see_them(run: context.Run) -> None:
    mixing = {"mixup": 0.5, "cutmix": 1.0, "label_smoothing": 0.1}
    labels: dict[Stage, list[np.ndarray]] = {}
    run.config.student.losses = tuple(LOSSES)

    record = _finished(_watched(run, labels), "watched", class_balance=0.9, **mixing)

    assert all(np.isfinite(student["validation"]["loss"]) for student in record["students"])
    assert not any((batch == sources.NO_LABEL).any() for batch in labels["teacher"])
    # There are 30 unlabelled images and 12 labelled ones in train.
    without = [int((batch == sources.NO_LABEL).sum()) for batch in labels["student"][:STEPS]]
    assert sum(without) == STEPS * 8 * 30 // 42
    assert record["data"]["unlabelled"]["examples"] == 30


@pytest.mark.slow
def test_students_without_a_teacher_are_those_of_a_run_without_them(run: context.Run) -> None:
    run.config.methods = ("scratch", "finetune")
    _finished(run, "with")
    run = _reloaded(run, unlabelled="")
    _finished(run, "without")

    for name, array in _student(run, "without", "scratch").items():
        np.testing.assert_array_equal(_student(run, "with", "scratch")[name], array)
    teachers = (
        np.load(run.workdir / folder / "selected" / "finetune_teacher.npz")
        for folder in ("with", "without")
    )
    first, second = map(dict, teachers)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)
    distilled = _student(run, "with")
    assert any((distilled[name] != array).any() for name, array in _student(run, "without").items())


@pytest.mark.slow
def test_a_run_resumes_exactly_and_with_stored_outputs(
    run: context.Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "outputs"))
    run = _reloaded(run, input="streamed")
    _finished(run, "live")
    run.config.student.store_outputs = True
    for steps in (2, 4):  # Stops the teacher, and then the student, after two of four steps.
        with pytest.raises(loop.StoppedError):
            _finished(run._replace(stopping=_stopping(steps)), "resumed")
    _finished(run, "resumed")
    _finished(run, "read")

    expected = _student(run, "live")
    for folder in ("resumed", "read"):
        for name, array in _student(run, folder).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.slow
def test_the_report_and_the_card_count_them(run: context.Run) -> None:
    record = _finished(run, "reported")

    folder = run.workdir / "reported"
    sentence = "also learned from 30 unlabelled images, through the teacher alone"
    assert sentence in data_summary.unlabelled(record)
    for path in ("report.md", "selected/finetune_student.md"):
        assert "30 unlabelled images" in (folder / path).read_text(), path
    (deviation,) = [text for text in protocol.deviations(record["config"]) if "unlabelled" in text]
    assert "the paper's do not" in deviation


def test_they_are_part_of_the_identity_and_nothing_else_is_without_them(
    run: context.Run, tmp_path: pathlib.Path
) -> None:
    before, facts = provenance.identity(run, {}), targets._unlabelled(run)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
        tmp_path / "more" / "another.png"
    )
    more = _reloaded(run)
    after, other_facts = provenance.identity(more, {}), targets._unlabelled(more)
    none = _reloaded(run, unlabelled="")
    without = provenance.identity(none, {})

    assert before.settings == after.settings
    assert "unlabelled" not in before.settings["data"]
    assert before.inputs["unlabelled"] != after.inputs["unlabelled"]
    assert before.inputs["data"] == after.inputs["data"] == without.inputs["data"]
    assert facts["unlabelled"] != other_facts["unlabelled"]
    assert {"unlabelled", "unlabelled_share"}.isdisjoint(
        {*without.inputs, *without.settings["data"], *targets._unlabelled(none)}
    )


def test_a_run_without_a_teacher_does_not_read_them(run: context.Run) -> None:
    run.config.methods = ("scratch",)

    assert _reloaded(run, unlabelled="/nowhere").dataset.unlabelled is None


def test_the_plan_counts_their_memory(run: context.Run) -> None:
    from remem_jax.workflow.remem import finetune, student_setup

    pretrained = finetune.read_pretrained(run)
    setup = student_setup.make(run, pretrained)

    (_, students) = plan_only.show(run, pretrained, setup)

    assert students.stage == "students/finetune"
    assert run.dataset.resident_bytes == 50 * 16 * 16 * 3
