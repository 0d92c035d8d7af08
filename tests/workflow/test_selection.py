"""Selection of the reported student on validation, by the mean over seeds."""

import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.data.loaders import resident
from remem_jax.records import Batches
from remem_jax.settings import check_remem
from remem_jax.train import loop
from remem_jax.weights import students
from remem_jax.workflow import context, step_memory
from remem_jax.workflow.remem import distill, finetune, pipeline, student_groups, student_setup


def record(rate: float, seed: int, top1: float, **changes: Any) -> dict[str, Any]:
    """Returns the fields of a student's record that selection uses."""
    metrics = {"top1": top1, "loss": 1.0}
    return {
        "loss": "kd",
        "learning_rate": rate,
        "temperature": 4.0,
        "weight": 0.5,
        "seed": seed,
        "validation": metrics,
        "test": metrics,
        "diverged": False,
    } | changes


def test_the_configuration_with_the_best_mean_is_chosen_not_the_best_student() -> None:
    tried = [record(0.1, 0, 0.9), record(0.1, 1, 0.5), record(0.2, 0, 0.8), record(0.2, 1, 0.8)]

    assert distill.select(tried, "top1", split="validation") == tried[2:]


@pytest.mark.parametrize("setting", ["teacher_step", "loss", "temperature", "weight"])
def test_students_of_different_configurations_are_not_averaged(setting: str) -> None:
    tried = [record(0.1, 0, 0.9), record(0.1, 1, 0.7, **{setting: "another"})]

    assert distill.select(tried, "top1", split="validation") == tried[:1]


def test_a_configuration_with_a_diverged_seed_is_not_chosen() -> None:
    not_finite = {"top1": math.nan, "loss": math.nan}
    tried = [
        record(0.1, 0, 0.9),
        record(0.1, 1, 0.0, validation=not_finite, diverged=True),
        record(0.2, 0, 0.3),
        record(0.2, 1, 0.3),
    ]

    assert distill.select(tried, "top1", split="validation") == tried[2:]


def test_an_error_is_raised_if_all_configurations_diverged() -> None:
    with pytest.raises(loop.NonFiniteLossError, match=r"config\.student\.learning_rates"):
        distill.select([record(0.1, 0, 0.9, diverged=True)], "top1", split="validation")


def test_ties_are_broken_by_the_loss() -> None:
    better = record(0.2, 0, 0.5, validation={"top1": 0.5, "loss": 0.9})

    assert distill.select([record(0.1, 0, 0.5), better], "top1", split="validation") == [better]


def test_selection_uses_the_test_split_only_on_request() -> None:
    first = record(0.1, 0, 0.9, test={"top1": 0.1, "loss": 1.0})
    second = record(0.2, 0, 0.8, test={"top1": 0.2, "loss": 1.0})

    assert distill.select([first, second], "top1", split="validation") == [first]
    assert distill.select([first, second], "top1", split="test") == [second]


@given(
    shares=st.lists(
        st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=6, unique_by=sum
    )
)
def test_the_choice_matches_numpy(shares: list[list[float]]) -> None:
    tried = [
        record(rate, seed, top1) for rate, row in enumerate(shares) for seed, top1 in enumerate(row)
    ]

    chosen = distill.select(tried, "top1", split="validation")

    best = np.mean(shares, axis=1).max()
    assert statistics.fmean(student["validation"]["top1"] for student in chosen) == pytest.approx(
        best
    )
    assert len(chosen) == 2


def test_groups_contain_all_seeds_of_a_configuration(small_run: context.Run) -> None:
    small_run.config.student.seeds = (0, 1, 2)
    small_run.config.student.group = 4

    with pytest.raises(SettingError, match=r"config\.student\.group must be a multiple of the 3"):
        check_remem(small_run.config)


def test_seeds_of_a_configuration_stay_together_if_few_fit(
    small_run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.config.student.seeds = (0, 1, 2)
    need = step_memory.Need("students/finetune", held=0, each=10, running=0)
    data_bytes = small_run.dataset.resident_bytes
    monkeypatch.setattr(resident, "memory", lambda: data_bytes + 75)

    assert student_groups.fitting(small_run, need, 12) == 6
    monkeypatch.setattr(resident, "memory", lambda: data_bytes + 25)
    with pytest.raises(SettingError, match=r"3 seeds .* name fewer config\.student\.seeds"):
        student_groups.fitting(small_run, need, 12)


@pytest.fixture
def finished(small_run: context.Run) -> tuple[context.Run, dict[str, Any], list[str]]:
    """A run of two seeds and two configurations, its results, and the splits that it read."""
    config, read = small_run.config, []

    def evaluation(split: str, batch_size: int) -> Batches:
        read.append(split)
        return small_run.loader.evaluation(split, batch_size)

    run = small_run._replace(loader=small_run.loader._replace(evaluation=evaluation))
    config.teacher.steps, config.teacher.warmup_steps = (2, 4), 0
    config.student.steps, config.student.warmup_steps, config.student.evaluations = 4, 0, 1
    config.student.learning_rates, config.student.seeds = (0.02, 0.1), (0, 7)
    config.choose_on_test = True
    pipeline.run_remem(run)
    results = json.loads((run.workdir / "results.json").read_text())
    return run, results, read


@pytest.mark.slow
def test_a_run_of_several_seeds_reports_and_saves_its_best_configuration(
    finished: tuple[context.Run, dict[str, Any], list[str]],
) -> None:
    run, results, read = finished
    (row,) = results["methods"]
    # Each split is read once per group of students, and once for the selected ones.
    student_groups = len(run.config.teacher.steps)
    teacher_evaluations = len(run.config.teacher.steps)
    another = row["on_test"]["selected"]["teacher_step"] != row["selected"]["teacher_step"]
    assert read.count("validation") == teacher_evaluations + student_groups + 1
    assert read.count("test") == student_groups + 1 + another
    tests = [student["test"]["top1"] for student in row["seeds"]]

    # The reported mean is that of the configuration with the best validation mean.
    assert row["student"]["test"]["top1"] == pytest.approx(np.mean(tests))
    means: dict[tuple[int, float], list[float]] = {}
    for student in results["students"]:
        key = student["teacher_step"], student["learning_rate"]
        means.setdefault(key, []).append(student["validation"]["top1"])
    assert row["student"]["validation"]["top1"] == pytest.approx(
        max(statistics.fmean(values) for values in means.values())
    )
    # Each student was tested; selection on test takes the best configuration.
    on_test: dict[tuple[int, float], list[float]] = {}
    for student in results["students"]:
        key = student["teacher_step"], student["learning_rate"]
        on_test.setdefault(key, []).append(student["test"]["top1"])
    assert row["on_test"]["student"]["test"]["top1"] == pytest.approx(
        max(statistics.fmean(values) for values in on_test.values())
    )
    # Both students are saved, and their files give the reported accuracy.
    best, other = row["seeds"]
    assert best["validation"]["top1"] >= other["validation"]["top1"]
    setup = student_setup.make(run, finetune.read_pretrained(run))
    settings = run.config.student
    model = models.make(settings.model, classes=len(run.dataset.classes), stem=settings.stem)
    for student, name in ((best, ""), (other, f"_seed_{other['seed']}")):
        path = run.workdir / "selected" / f"finetune{name}_student.safetensors"
        loaded = students.load(path, model)
        assert setup.measure(loaded, "test")["top1"] == pytest.approx(student["test"]["top1"])
    text = (run.workdir / "report.md").read_text()
    assert f"± {100 * statistics.stdev(tests):.2f}" in text
    assert "Selected on test (optimistic)" in text
