"""Whole runs that train the selected models anew, and runs that select on test."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from remem_jax import paired
from remem_jax.checks import SettingError
from remem_jax.export import runs
from remem_jax.report.run import comparisons, data_summary
from remem_jax.settings import check_remem, unused
from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.remem import pipeline

STEPS = 4


@pytest.fixture
def run(small_run: context.Run) -> context.Run:
    """A run of the digits with two seeds and rates of students, and two teachers."""
    config = small_run.config
    config.methods = ("scratch", "finetune")
    config.save_every = config.log_every = 1
    config.teacher.steps, config.student.steps = (2, STEPS), STEPS
    config.teacher.warmup_steps = config.student.warmup_steps = 0
    config.student.evaluations = 1
    config.student.learning_rates = (0.01, 0.05)
    config.student.seeds = (0, 1)
    return small_run


def _reloaded(run: context.Run, **changes: Any) -> context.Run:
    run.config.data.update(changes)
    check_remem(run.config)
    dataset, loader = context.load_data(run.config, run.config.data, run.mesh)
    return run._replace(dataset=dataset, loader=loader)


def _finished(run: context.Run) -> dict[str, Any]:
    pipeline.run_remem(run)
    record = results.read(run.workdir / "results.json")
    assert record is not None
    return record


def _student(run: context.Run, name: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run.workdir / "selected" / f"{name}_student.safetensors")


@pytest.mark.slow
def test_a_finished_run_is_refitted_by_the_same_command_and_resumes(run: context.Run) -> None:
    run = _reloaded(run, refit=False)
    before = _finished(run)
    _check_without_refit(run, before)
    times = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("result.json")}

    run = _reloaded(run, refit=True)
    record = _finished(run)

    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert before["methods"][1]["student"] == record["methods"][1]["student"]
    images = run.dataset.splits
    for row in record["methods"]:
        again = row["refit"]
        assert again["images"] == len(images["train"].rows) + len(images["validation"].rows)
        assert [seed["seed"] for seed in again["seeds"]] == [seed["seed"] for seed in row["seeds"]]
        # The test metrics are those of the saved predictions.
        packed = again["test_correct"]["students"]
        accuracies = [paired.unpack(text).mean() for text in packed]
        measured = [seed["test"]["top1"] for seed in again["seeds"]]
        assert measured == pytest.approx(accuracies, abs=1e-6)
        assert again["student"]["test"]["top1"] == pytest.approx(np.mean(accuracies))
    finetuned = record["methods"][1]
    assert finetuned["refit"]["teacher"]["test"].keys() == finetuned["teacher"]["test"].keys()
    # Only the selected teacher's steps are trained, and the selected configuration.
    stage = run.workdir / "teachers" / "finetune" / "refit"
    saved = [path.parent.name for path in stage.glob("step_*/record.json")]
    assert saved == [f"step_{finetuned['selected']['teacher_step']}"]
    trained = json.loads((run.workdir / "students/finetune/refit/result.json").read_text())
    rates = {student["learning_rate"] for student in trained["students"]}
    assert rates == {finetuned["selected"]["learning_rate"]}
    assert len(trained["students"]) == 2
    assert not list(run.workdir.rglob("best"))
    # Other weights than the selected ones.
    for method in ("scratch", "finetune"):
        first, second = _student(run, method), _student(run, f"{method}_refit")
        assert any((first[name] != second[name]).any() for name in first)
    _check_reports(run, record)
    _check_interruption(run, record)


def _check_without_refit(run: context.Run, record: dict[str, Any]) -> None:
    """Checks what users read about a run without a refit."""
    with pytest.raises(SettingError, match=r"again with --config\.data\.refit=True"):
        runs.open_student(run.workdir, method="scratch_refit")
    train, held = (len(run.dataset.splits[name].rows) for name in ("train", "validation"))
    sentence = f"Of {train + held:,} training images, {held:,} were held out to select models."
    assert data_summary.held_out(record) == sentence
    assert sentence in (run.workdir / "report.md").read_text()


def _check_interruption(run: context.Run, record: dict[str, Any]) -> None:
    """Checks that a refit that was stopped in the student's training gives the same models."""
    for part in ("students/finetune/refit", "teachers/finetune/refit"):
        shutil.rmtree(run.workdir / part)
    (run.workdir / "selected" / "finetune_refit.json").unlink()
    whole, calls = _student(run, "finetune_refit"), iter(range(100))
    steps = record["methods"][1]["selected"]["teacher_step"]

    with pytest.raises(loop.StoppedError):
        pipeline.run_remem(run._replace(stopping=lambda: next(calls) == steps + 1))
    resumed = _finished(run)

    for name, array in _student(run, "finetune_refit").items():
        np.testing.assert_array_equal(array, whole[name])
    assert resumed["methods"] == record["methods"]


def _check_reports(run: context.Run, record: dict[str, Any]) -> None:
    """Checks what users read about a refit."""
    text = (run.workdir / "report.md").read_text()
    row = record["methods"][1]
    correct, again = (
        np.stack([paired.unpack(each) for each in model["test_correct"]["students"]])
        for model in (row, row["refit"])
    )
    difference = 100 * (again.mean() - correct.mean())
    assert f"| {difference:+.2f} |" in text
    assert "## Trained anew on train and validation" in text
    assert "and once for those trained anew on train and validation" in text
    card = (run.workdir / "selected" / "finetune_refit_student.md").read_text()
    assert "it was then trained anew with them on train and validation together" in card
    assert "finetune_refit_student.safetensors" in card
    opened = runs.open_student(run.workdir, method="finetune_refit")
    assert opened.source.endswith("finetune_refit_student.safetensors")


def test_a_refit_needs_validation_images(run: context.Run) -> None:
    run.config.choose_on_test = True

    with pytest.raises(SettingError, match=r"config\.data\.refit trains on train and validation"):
        _reloaded(run, refit=True, validation=0.0)


@pytest.mark.slow
def test_without_validation_images_the_test_split_selects(run: context.Run) -> None:
    run.config.choose_on_test, run.config.methods = True, ("finetune",)
    whole = len(run.dataset.splits["train"].rows) + len(run.dataset.splits["validation"].rows)
    run = _reloaded(run, validation=0.0)

    record = _finished(run)

    assert record["data"]["examples"] == {
        "train": whole,
        "test": len(run.dataset.splits["test"].rows),
    }
    assert record["data"]["selection"] == "test"
    for row in record["methods"]:
        assert row["student"]["validation"] is None
        assert row["on_test"] is None
        # The student that is best on test, over all, by the mean of its seeds.
        tried = [each for each in record["students"] if each["method"] == row["method"]]
        assert all(each["validation"] is None for each in tried)
        means: dict[Any, list[float]] = {}
        for each in tried:
            means.setdefault((each["teacher_step"], each["learning_rate"]), []).append(
                each["test"]["top1"]
            )
        assert row["student"]["test"]["top1"] == max(map(np.mean, means.values()))
    assert all(teacher["validation"] is None for teacher in record["teachers"])
    text = (run.workdir / "report.md").read_text()
    assert "## Results, selected on test (optimistic)" in text
    assert "selected on the test split itself" in text
    assert "validation, %" not in text
    assert "No training image was held out: config.data.validation is 0." in text
    card = (run.workdir / "selected" / "finetune_student.md").read_text()
    assert "selected on test" in card
    assert "none; the test images selected the model" in card
    split = (run.workdir / "selected" / "split.csv").read_text()
    assert ",validation," not in split
    assert comparisons.models(record)


def test_selecting_on_test_must_be_asked_for(run: context.Run) -> None:
    with pytest.raises(SettingError, match=r"config\.data\.validation is 0.*choose_on_test"):
        _reloaded(run, validation=0.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"held_out_splits": ["test", "validation"]},
            "Of 1,837 training images, 687 were held out: 400 to test models and 287 to "
            "select models.",
        ),
        (
            {"held_out_splits": []},
            "No training image was held out: the validation split is the data set's own.",
        ),
        (
            {
                "held_out_splits": ["validation"],
                "groups": {
                    "named": 30,
                    "named_images": 90,
                    "duplicates": 2,
                    "duplicate_images": 5,
                },
            },
            "Of 1,437 training images, 287 were held out to select models. 30 named groups (90 "
            "images) and 2 groups of near duplicates (5 images) were not divided.",
        ),
    ],
)
def test_held_out_images_are_described(changes: dict[str, Any], sentence: str) -> None:
    data = {"examples": {"train": 1150, "validation": 287, "test": 400}, "held_out": True}

    assert data_summary.held_out({"data": {**data, **changes}}) == sentence


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("data.official_validation", {"name": "cifar100"}, "has none: the authors have no"),
        ("data.official_validation", {"name": "dtd"}, ""),
        ("data.group_duplicates", {"name": "dtd"}, "used as it is published"),
        ("data.group_duplicates", {"name": "folder"}, ""),
        ("data.group_pattern", {"name": "arrays"}, "whose images have no names"),
        ("data.group_pattern", {"name": "tfds:beans"}, "group_feature is empty"),
        ("data.group_pattern", {"name": "tfds:beans", "group_feature": "id"}, ""),
        ("data.group_pattern", {"name": "list"}, ""),
        ("data.group_feature", {"name": "folder"}, "does not have the form tfds:"),
    ],
)
def test_settings_without_effect_are_refused(
    run: context.Run, name: str, changes: dict[str, Any], reason: str
) -> None:
    run.config.data.update(changes)

    found = unused.reason(run.config, name)

    assert (reason in found) if reason else not found
