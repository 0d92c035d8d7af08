"""Remarks of a report on test images that were also trained on."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from remem_jax import paired, report
from tests.report.conftest import LABELS, WRONG

TESTS = [0, 1, 2, 30, 251, 268]  # Repeated test images.


def _record(tests: list[int], same_file: int = 0, different_labels: int = 0) -> dict[str, Any]:
    return {
        "images": len(tests),
        "same_file": same_file,
        "different_labels": different_labels,
        "test": paired.pack(np.isin(np.arange(len(LABELS)), tests)),
        "examples": [[f"test/{i}.jpg", "train", f"train/{i}.jpg"] for i in tests[:20]],
    }


def _pages(run: pathlib.Path, results: dict[str, Any]) -> list[str]:
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write(run)
    pages = [(run / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    return [page.replace("\\", "") for page in pages]


def _share(method: str, role: str, metric: str, without: list[int]) -> str:
    """Returns a model's metric in percent, from scikit-learn."""
    kept = np.setdiff1d(np.arange(len(LABELS)), without)
    predicted = LABELS.copy()
    predicted[WRONG[method, role]] = 1 - predicted[WRONG[method, role]]
    score = metrics.accuracy_score if metric == "top1" else metrics.balanced_accuracy_score
    return f"{100 * score(LABELS[kept], predicted[kept]):.2f}"


def test_the_number_of_repeated_images_is_stated_and_some_are_named(
    run: pathlib.Path, results: dict[str, Any]
) -> None:
    results["data"]["repeated"] = _record(TESTS, same_file=2, different_labels=1)

    for page in _pages(run, results):
        assert (
            "6 of 400 test images are also among the training or validation images, 2 as the same "
            "file and 4 as nearly the same picture. 1 of them has another label there."
        ) in page
        assert "These are test/0.jpg (train/0.jpg in train), test/1.jpg (train/1.jpg" in page
        assert "251.jpg (train/251.jpg in train) and 1 more." in page


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_accuracies_with_and_without_them_are_those_of_scikit_learn(
    run: pathlib.Path, results: dict[str, Any], metric: str
) -> None:
    results["data"] |= {"repeated": _record(TESTS), "metric": metric}
    titles = {
        ("scratch", "students"): "From scratch, student",
        ("finetune", "students"): "Fine-tuning, student",
        ("finetune", "teacher"): "Fine-tuning, teacher",
        ("remem", "students"): "ReMem, student",
        ("remem", "teacher"): "ReMem, teacher",
    }
    expected = [
        f"{title} {_share(*key, metric, TESTS)} (with them {_share(*key, metric, [])})"
        for key, title in titles.items()
    ]

    for page in _pages(run, results):
        assert all(text in page for text in expected)


def test_several_students_have_their_mean(run: pathlib.Path, results: dict[str, Any]) -> None:
    (row,) = [row for row in results["methods"] if row["method"] == "scratch"]
    all_right = paired.pack(np.ones(len(LABELS), bool))
    row["test_correct"]["students"].append(all_right)
    results["data"]["repeated"] = _record(TESTS)
    without = (float(_share("scratch", "students", "top1", TESTS)) + 100) / 2

    for page in _pages(run, results):
        assert f"From scratch, student {without:.2f} (with them 90.00)" in page


def test_images_of_a_fixed_camera_are_said_to_look_alike(
    run: pathlib.Path, results: dict[str, Any]
) -> None:
    results["data"]["repeated"] = _record([*range(300)])

    for page in _pages(run, results):
        assert "may only mean that all images look alike" in page
        assert "without them, in percent" in page


def test_without_any_other_image_there_is_no_accuracy(
    run: pathlib.Path, results: dict[str, Any]
) -> None:
    results["data"]["repeated"] = _record([*range(400)])

    for page in _pages(run, results):
        assert "400 of 400 test images" in page
        assert "without them, in percent" not in page


def test_results_without_single_images_have_no_accuracies(
    run: pathlib.Path, older: dict[str, Any]
) -> None:
    older["data"]["repeated"] = _record(TESTS)

    for page in _pages(run, older):
        assert "6 of 400 test images" in page
        assert "without them, in percent" not in page


@pytest.mark.parametrize("record", [_record([]), None, "missing"], ids=["none", "unknown", "older"])
def test_there_is_no_remark_without_repeated_images(
    run: pathlib.Path, results: dict[str, Any], record: Any
) -> None:
    results["data"] |= {} if record == "missing" else {"repeated": record}

    for page in _pages(run, results):
        assert "are also among" not in page
        assert "Remarks on the data" not in page
