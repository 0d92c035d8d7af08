"""The first sentence of a report states what distillation gained, or that it gained nothing."""

import copy
import math
import statistics
from typing import Any

import numpy as np
import pytest
from scipy import stats

from remem_jax import paired
from remem_jax.report.run import distillation
from tests.report.conftest import LABELS, WRONG

IMAGES = len(LABELS)
INITIAL = {
    "init": "resnet18.safetensors",
    **dict.fromkeys(("repository", "commit", "pretraining", "licence", "digest"), ""),
}


@pytest.fixture
def pretrained(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a run whose student is pretrained, with the method `alone` of 89 %."""
    results["models"]["student_init"] = INITIAL
    row = copy.deepcopy(results["methods"][0])
    row["method"] = "alone"
    _set_wrong(row, [*range(24), *range(250, 270)])
    results["methods"].insert(1, row)
    return results


def _set_wrong(row: dict[str, Any], wrong: list[int]) -> None:
    """Sets the test images that a row's student classifies wrongly."""
    correct = np.ones(IMAGES, bool)
    correct[wrong] = False
    row["test_correct"]["students"] = [paired.pack(correct)]
    row["student"]["test"]["top1"] = float(correct.mean())


def _by_method(results: dict[str, Any], method: str) -> dict[str, Any]:
    (row,) = [row for row in results["methods"] if row["method"] == method]
    return row


def test_gains_over_both_baselines_have_paired_errors(pretrained: dict[str, Any]) -> None:
    better, worse = len(range(10, 24)), 0  # Images on which ReMem and `alone` differ.
    error = math.sqrt(better + worse - (better - worse) ** 2 / IMAGES) / IMAGES
    p = stats.binomtest(worse, better + worse).pvalue

    text = distillation.gain(pretrained)

    assert text is not None
    assert text.startswith(
        "On test, distillation (ReMem, the best on validation) gained 3.50 points over the same "
        "student without a teacher, from the same pretrained weights (92.50 against 89.00 %; "
        f"standard error of the difference {100 * error:.2f}, p = {p:.2g}); it gained 12.50 points "
        "over the student trained from scratch"
    )


def test_a_difference_within_the_error_is_no_gain(pretrained: dict[str, Any]) -> None:
    _set_wrong(_by_method(pretrained, "alone"), [*WRONG["remem", "students"], 30])

    text = distillation.gain(pretrained)

    assert text is not None
    assert "gained nothing that the test images can show over the same student" in text
    assert "0.25 points above (92.50 against 92.25 %" in text


@pytest.mark.parametrize(
    ("wrong", "far"), [([*range(8)], "5.50 points below"), ([*range(30)], "equally accurate")]
)
def test_a_loss_is_stated_plainly(pretrained: dict[str, Any], wrong: list[int], far: str) -> None:
    _set_wrong(_by_method(pretrained, "alone"), wrong)

    text = distillation.gain(pretrained)

    assert text is not None
    assert "gained nothing over the same student without a teacher, from the same" in text
    assert f": {far} (" in text


def test_the_best_student_on_validation_is_compared(pretrained: dict[str, Any]) -> None:
    _by_method(pretrained, "finetune")["student"]["validation"]["top1"] = 0.99

    text = distillation.gain(pretrained)

    assert text is not None
    assert text.startswith("On test, distillation (Fine-tuning, the best on validation) gained")


def test_the_error_over_seeds_is_that_of_the_paired_differences(pretrained: dict[str, Any]) -> None:
    high, low = [0.93, 0.92, 0.95], [0.90, 0.91, 0.88]
    for method, shares in (("remem", high), ("alone", low)):
        _by_method(pretrained, method)["seeds"] = [
            {"seed": seed, "test": {"top1": share}} for seed, share in enumerate(shares)
        ]
    differences = [above - below for above, below in zip(high, low, strict=True)]
    expected = stats.sem(differences)

    text = distillation.gain(pretrained)

    assert text is not None
    assert f"; over 3 seeds {100 * expected:.2f})" in text
    assert expected == pytest.approx(statistics.stdev(differences) / math.sqrt(3))


def test_an_unmeasured_baseline_of_a_pretrained_student_is_named(
    results: dict[str, Any],
) -> None:
    results["models"]["student_init"] = INITIAL

    text = distillation.gain(results)

    assert text is not None
    assert text.endswith("was not measured: add alone to config.methods.")


def test_nothing_is_said_without_a_teacher(results: dict[str, Any]) -> None:
    results["methods"] = results["methods"][:1]

    assert distillation.gain(results) is None


def test_older_results_have_no_error(older: dict[str, Any]) -> None:
    text = distillation.gain(older)

    assert text is not None
    assert "gained 12.50 points over the student trained from scratch" in text
    assert "standard error" not in text
