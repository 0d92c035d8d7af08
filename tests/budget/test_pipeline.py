"""Whole runs with a time budget, of tiny models on images that are easily told apart."""

import json
import logging
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import remem_jax
from configs import own
from remem_jax.budget import measuring, pipeline, plan
from remem_jax.checks import SettingError
from remem_jax.commands import clean
from remem_jax.storage import logs
from remem_jax.train import loop
from tests import tiny_run

pytestmark = [pytest.mark.usefixtures("mixed_dtypes", "resnet4"), pytest.mark.slow]


class Stopped(NamedTuple):
    """A run that was stopped and finished, and its record when it was stopped."""

    folder: pathlib.Path
    record: dict[str, Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of noisy images of three colours, a class each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for i in range(30):
            pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_run.save_teacher(tmp_path_factory.mktemp("weights") / "vit.npz")


def make_config(images: pathlib.Path, teacher: pathlib.Path) -> ConfigDict:
    """Returns settings with few steps, which leave the rest to be planned."""
    config = own.get_config(str(images))
    config.data.image_size = tiny_run.IMAGE_SIZE
    config.teacher.init, config.teacher.steps = str(teacher), (4,)
    config.student.model, config.student.init = tiny_run.NAME, ""
    config.student.steps = 4
    return config


@pytest.fixture
def config(images: pathlib.Path, teacher: pathlib.Path) -> ConfigDict:
    return make_config(images, teacher)


@pytest.fixture(scope="module")
def stopped(
    images: pathlib.Path,
    teacher: pathlib.Path,
    resnet4: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Stopped:
    """A run of all methods that was stopped in its second stage, and finished."""
    folder, calls = tmp_path_factory.mktemp("run"), iter(range(100))
    names = ("data.image_size", "teacher.init", "teacher.steps", "student.model", "student.steps")
    given = (*names, "student.init", "budget.hours")
    with jax.numpy_dtype_promotion("standard"):
        config = make_config(images, teacher)
        with pytest.raises(loop.StoppedError):
            pipeline.run(config, folder, stopping=lambda: next(calls) >= 6, given=given)
        record = json.loads((folder / "budget.json").read_text())
        pipeline.run(config, folder, given=given)
    return Stopped(folder, record)


def read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def stages(folder: pathlib.Path) -> list[plan.Stage]:
    return [plan.read(stage) for stage in read(folder)["budget"]["stages"]]


def written(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """Returns when the students of a run were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "students").rglob("*")}


def test_a_run_trains_tests_and_reports_all_methods(stopped: Stopped) -> None:
    results = read(stopped.folder)
    assert [row["method"] for row in results["methods"]] == ["scratch", "finetune", "remem"]
    assert [stage.name for stage in stages(stopped.folder)] == [
        "students/scratch",
        "teachers/finetune",
        "students/finetune",
        "teachers/remem",
        "students/remem",
    ]
    assert {stage.steps for stage in stages(stopped.folder)} == {4}
    assert results["config"]["student"]["batch_size"] == 8  # Chosen for 65 images.
    assert (stopped.folder / "report.html").is_file()


def test_a_stopped_run_goes_on_with_its_plan(stopped: Stopped) -> None:
    assert [stage["method"] for stage in stopped.record["stages"]] == ["scratch"]
    assert 0 < stopped.record["seconds"] < 300
    first, *_ = stages(stopped.folder)
    assert first._asdict() == plan.read(stopped.record["stages"][0])._asdict()
    assert read(stopped.folder)["budget"]["seconds"] > stopped.record["seconds"]


def test_a_start_after_the_end_trains_nothing_and_only_the_hours_may_change(
    stopped: Stopped, config: ConfigDict
) -> None:
    before, results = written(stopped.folder), read(stopped.folder)
    config.budget.hours = 2.0

    pipeline.run(config, stopped.folder)

    assert written(stopped.folder) == before
    assert read(stopped.folder)["methods"] == results["methods"]

    config.student.temperatures = (3.0,)
    with pytest.raises(SettingError, match=r"belongs to another config.*temperatures"):
        pipeline.run(config, stopped.folder)


def test_training_ends_in_time_with_a_learning_rate_of_zero(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_REPORT_SECONDS", 8.0)  # Of tiny models.
    # A hundred thousand steps would take minutes; what is left of the seconds is for them.
    config.methods = ("scratch",)
    config.student.steps, config.log_every = 100_000, 10
    config.budget.hours = 25 / 3600
    began = time.monotonic()

    pipeline.run(config, tmp_path)

    assert time.monotonic() - began < 1.3 * 25
    (stage,) = stages(tmp_path)
    assert 20 < stage.steps < 50_000
    (row,) = read(tmp_path)["methods"]
    assert row["selected"]["steps"] == stage.steps
    assert max(each["step"] for each in logs.read(tmp_path)) == stage.steps


def test_a_method_without_time_is_left_out_with_the_hours_that_suffice(
    config: ConfigDict,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "absl")
    speeds = plan.Speeds(*(0.1 for _ in plan.Speeds._fields))._replace(report=1e3)
    monkeypatch.setattr(measuring, "measure", lambda *arguments: speeds)
    config.methods, config.student.steps, config.budget.hours = (), 0, 60 / 3600

    pipeline.run(config, tmp_path)

    results = read(tmp_path)
    assert [row["method"] for row in results["methods"]] == ["scratch"]
    assert 1e3 / 3600 < results["budget"]["left_out"]["finetune"] < 0.5
    for text in (caplog.text, (tmp_path / "report.md").read_text()):
        assert "Fine-tuning (needs --hours=" in text


def test_a_method_that_diverges_is_left_out_and_named(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    config.methods, config.retries = ("scratch", "finetune"), 0
    config.teacher.learning_rate = 1e38  # Logits overflow after a step.

    pipeline.run(config, tmp_path)

    results = read(tmp_path)
    assert [row["method"] for row in results["methods"]] == ["scratch"]
    (failure,) = results["failed"]
    assert failure["method"] == "finetune"
    assert "Fine-tuning has no result" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("hours", [0.0, -1.0])
def test_hours_must_be_positive(config: ConfigDict, tmp_path: pathlib.Path, hours: float) -> None:
    config.budget.hours = hours
    with pytest.raises(SettingError, match=r"config\.budget\.hours must be above 0"):
        pipeline.run(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_more_hours_test_the_better_student_even_after_cleaning(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.methods, config.student.steps = ("scratch",), 0

    def remaining(*arguments: Any) -> tuple[plan.Stage, ...]:
        done = arguments[3] if len(arguments) > 3 else ()
        variants = [("", 2)] if not longer else [("", 2), ("longer_2", 40)]
        planned = [
            plan.Stage("students", "scratch", steps, (0.1,), variant, 60.0)
            for variant, steps in variants
        ]
        return tuple(stage for stage in planned if stage.key not in {each.key for each in done})

    monkeypatch.setattr(plan, "remaining", remaining)
    longer: list[bool] = []
    pipeline.run(config, tmp_path)
    (first,) = read(tmp_path)["methods"]
    weak = remem_jax.load(tmp_path)
    assert clean.main([str(tmp_path)]) == 0
    longer.append(True)

    pipeline.run(config, tmp_path)

    (second,) = read(tmp_path)["methods"]
    assert second["selected"]["steps"] > first["selected"]["steps"]
    assert second["student"]["test"]["loss"] < first["student"]["test"]["loss"]
    image = np.full((16, 16, 3), (250, 60, 60), np.uint8)
    strong = remem_jax.load(tmp_path)
    assert strong.predict(image)[0].probability != weak.predict(image)[0].probability
