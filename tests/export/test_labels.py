"""Labels that the teacher of a run contradicts, against the record of its own evaluation."""

import csv
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from remem_jax import paired, workflow
from remem_jax.checks import SettingError
from remem_jax.commands import data as command
from remem_jax.data.inspection.labels import Check
from remem_jax.export import labels
from tests import tiny_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("mixed_dtypes"),
]
CLASSES = ("nought", "one", "two", "three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Handwritten digits in a folder of class folders."""
    root = tmp_path_factory.mktemp("digits")
    bunch = datasets.load_digits()
    for i in np.flatnonzero(bunch.target < len(CLASSES))[:240].tolist():
        path = root / CLASSES[bunch.target[i]] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((bunch.images[i] * 15).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def finished(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run on these images, with a teacher and a student without one."""
    directory = tmp_path_factory.mktemp("run")
    config = tiny_run.get_config()
    config.teacher.init = str(tiny_run.save_teacher(directory / "teacher.npz"))
    config.data.name, config.data.path = "folder", str(folder)
    config.data.cache = str(directory / "cache")
    config.methods = ("scratch", "finetune")
    config.teacher.steps, config.teacher.batch_size, config.teacher.warmup_steps = (20,), 16, 2
    config.student.steps, config.student.batch_size, config.student.warmup_steps = 20, 16, 2
    config.student.learning_rates, config.student.evaluations = (0.05,), 1
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes types.
        workflow.run(config, directory / "run")
    return directory / "run"


@pytest.fixture(scope="module")
def results(finished: pathlib.Path) -> dict[str, Any]:
    """The results of the run."""
    return json.loads((finished / "results.json").read_text())


@pytest.fixture(scope="module")
def checked(finished: pathlib.Path) -> Check:
    """The labels, as its teacher sees them."""
    with jax.numpy_dtype_promotion("standard"):
        return labels.check(finished)


def _contradicted(check: Check, split: str) -> list[int]:
    return sorted(suspect.image for suspect in check.suspects if suspect.split == split)


def _wrong(packed: str) -> list[int]:
    return np.flatnonzero(~paired.unpack(packed).astype(bool)).tolist()


def test_the_teacher_contradicts_what_it_classified_wrongly_in_the_run(
    checked: Check, results: dict[str, Any]
) -> None:
    (row,) = [row for row in results["methods"] if row["method"] == "finetune"]

    assert checked.model == "the teacher (Fine-tuning)"
    assert 0 < len(_contradicted(checked, "test")) < results["data"]["examples"]["test"]
    assert _contradicted(checked, "test") == _wrong(row["test_correct"]["teacher"])


def test_all_images_of_the_run_are_checked(checked: Check, results: dict[str, Any]) -> None:
    assert checked.images == results["data"]["examples"]
    assert {suspect.split for suspect in checked.suspects} <= set(checked.images)


def test_the_accuracy_on_validation_is_that_of_the_run(
    checked: Check, results: dict[str, Any]
) -> None:
    (row,) = [row for row in results["methods"] if row["method"] == "finetune"]
    wrong, images = len(_contradicted(checked, "validation")), checked.images["validation"]

    assert row["teacher"]["validation"]["top1"] == pytest.approx(1 - wrong / images)


def test_a_run_without_a_file_of_a_teacher_is_checked_by_its_student(
    finished: pathlib.Path, results: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "selected" / "finetune_teacher.npz").unlink()  # As with adapters.
    metric = results["data"]["metric"]
    best = max(results["methods"], key=lambda row: row["student"]["validation"][metric])

    found = labels.check(copy)

    assert found.model.startswith("the student (")
    assert _contradicted(found, "test") == _wrong(best["test_correct"]["students"][0])


def test_images_may_have_moved_but_not_changed(
    folder: pathlib.Path, finished: pathlib.Path, checked: Check, tmp_path: pathlib.Path
) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")

    found = labels.check(finished, path=str(moved))

    assert [suspect.image for suspect in found.suspects] == [
        suspect.image for suspect in checked.suspects
    ]
    first = sorted(moved.rglob("*.png"))[0]
    first.rename(moved / "two" / first.name)
    with pytest.raises(SettingError, match=r"are not those that the run .* give the folder where"):
        labels.check(finished, path=str(moved))


def test_the_command_shows_what_it_found(
    finished: pathlib.Path,
    checked: Check,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--run", str(finished), "--out", str(tmp_path / "look")]) == 0

    text = " ".join(capsys.readouterr().out.split())
    out_of_sample = [suspect for suspect in checked.suspects if not suspect.trained]
    images = checked.images["validation"] + checked.images["test"]
    assert f"the labels of {len(out_of_sample)} of {images} validation and test images" in text
    assert out_of_sample[0].name in text
    page = (tmp_path / "look" / "index.html").read_text()
    assert "<h2>Suspicious labels</h2>" in page
    with (tmp_path / "look" / "suspicious_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [suspect.name for suspect in checked.suspects]
    assert rows[0]["predicted"] == sorted(CLASSES)[checked.suspects[0].predicted]
