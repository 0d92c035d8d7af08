"""Differences between models in a report agree with SciPy and closed forms."""

import math
from typing import Any

import pytest
from scipy import stats

from remem_jax import paired
from remem_jax.report.card import model_card
from remem_jax.report.run import comparisons
from tests.report.conftest import LABELS, WRONG

IMAGES = len(LABELS)


def _row(results: dict[str, Any], title: str) -> tuple[str, ...]:
    table = comparisons.table(results)
    assert table is not None
    (row,) = [row for row in table.rows if row[0] == title]
    return row


def _expected(high: str, low: str, role: str = "students") -> tuple[str, str, str]:
    """Computes difference, error and p of two models from the images on which they differ."""
    wrong_high, wrong_low = set(WRONG[high, role]), set(WRONG[low, role])
    better, worse = len(wrong_low - wrong_high), len(wrong_high - wrong_low)
    error = math.sqrt(better + worse - (better - worse) ** 2 / IMAGES) / IMAGES
    p = stats.binomtest(worse, better + worse).pvalue
    p_text = "< 0.0001" if p < 1e-4 else f"{p:.2g}"
    return f"{100 * (better - worse) / IMAGES:+.2f}", f"{100 * error:.2f}", p_text


def test_all_pairs_of_students_and_of_teachers_are_compared(results: dict[str, Any]) -> None:
    table = comparisons.table(results)

    assert table is not None
    assert [row[0] for row in table.rows] == [
        "Fine-tuning, student, minus From scratch",
        "ReMem, student, minus From scratch",
        "ReMem, student, minus Fine-tuning",
        "ReMem, teacher, minus Fine-tuning",
    ]
    assert "same 400 test images" in table.note


@pytest.mark.parametrize(
    ("title", "pair"),
    [
        ("ReMem, student, minus Fine-tuning", ("remem", "finetune")),
        ("Fine-tuning, student, minus From scratch", ("finetune", "scratch")),
        ("ReMem, teacher, minus Fine-tuning", ("remem", "finetune", "teacher")),
    ],
)
def test_a_difference_has_its_paired_error_and_mcnemars_p(
    results: dict[str, Any], title: str, pair: tuple[str, ...]
) -> None:
    assert _row(results, title)[1:] == _expected(*pair)


def test_a_difference_of_means_per_class_also_has_an_error_over_classes(
    results: dict[str, Any],
) -> None:
    results["data"]["metric"] = "mean_per_class"
    per_class = [(40 - 10) / 250, (40 - 20) / 150]  # ReMem minus training from scratch.
    over = stats.ttest_1samp(per_class, 0)

    _, difference, _, _, error, p = _row(results, "ReMem, student, minus From scratch")

    assert difference == f"{100 * sum(per_class) / 2:+.2f}"
    expected = 100 * abs(per_class[0] - per_class[1]) / 2
    assert float(error) == pytest.approx(expected, abs=0.005)
    assert float(p) == pytest.approx(over.pvalue, rel=0.05)


def test_means_over_seeds_are_compared(results: dict[str, Any]) -> None:
    row = results["methods"][2]
    row["test_correct"]["students"] *= 2

    title = "ReMem, student, minus Fine-tuning"

    difference, error, _ = _expected("remem", "finetune")
    assert _row(results, title)[1:3] == (difference, error)
    better, worse = 15, 5
    p = stats.chi2.sf((better - worse) ** 2 / (better + worse), 1)
    assert _row(results, title)[3] == f"{p:.2g}"


def test_nothing_is_compared_without_recorded_predictions(older: dict[str, Any]) -> None:
    assert comparisons.table(older) is None
    assert comparisons.beside_teacher(older, "remem") is None
    assert "standard error of the difference" not in str(comparisons.gain(older))
    assert "do not show whether two students differ" in comparisons.standard_errors(older)


def test_gain_is_in_points_with_the_error_of_the_difference(results: dict[str, Any]) -> None:
    _, error, p = _expected("remem", "finetune")

    assert comparisons.gain(results) == (
        "On test, ReMem's student is 2.50 points above fine-tuning's (standard error of the "
        f"difference {error}, p = {p})."
    )


def test_a_gain_may_be_negative(older: dict[str, Any]) -> None:
    older["methods"][2]["student"]["test"]["top1"] = 0.8

    text = comparisons.gain(older)

    assert text is not None
    assert "10.00 points below fine-tuning's." in text


def test_no_gain_without_remem(results: dict[str, Any]) -> None:
    del results["methods"][2]

    assert comparisons.gain(results) is None


@pytest.mark.parametrize("fixture", ["results", "older"])
def test_standard_errors_of_top1_are_binomial(request: pytest.FixtureRequest, fixture: str) -> None:
    text = comparisons.standard_errors(request.getfixturevalue(fixture))

    # sqrt(0.8 * 0.2 / 400) = 0.02 and sqrt(0.9 * 0.1 / 400) = 0.015.
    assert "2.00 (From scratch), 1.50 (Fine-tuning)" in text
    assert "one seed (7)" in text
    assert "rough" not in text


@pytest.mark.parametrize("fixture", ["results", "older"])
def test_no_difference_is_judged_by_the_errors_of_single_accuracies(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    assert "two standard errors" not in comparisons.standard_errors(
        request.getfixturevalue(fixture)
    )


def test_standard_errors_of_a_mean_over_classes_are_those_of_its_classes(
    results: dict[str, Any],
) -> None:
    results["data"]["metric"] = "mean_per_class"
    variances = [share * (1 - share) / (n - 1) for share, n in ((0.96, 250), (20 / 150, 150))]
    expected = 100 * math.sqrt(sum(variances)) / 2

    text = comparisons.standard_errors(results)

    assert f"{expected:.2f} (ReMem)" in text
    assert "rough" not in text


def test_standard_errors_of_a_mean_over_classes_are_approximate_without_predictions(
    older: dict[str, Any],
) -> None:
    older["data"]["metric"] = "mean_per_class"

    assert "is approximate" in comparisons.standard_errors(older)


def test_a_card_compares_the_student_with_its_teacher(results: dict[str, Any]) -> None:
    student, teacher = (set(WRONG["remem", role]) for role in ("students", "teacher"))
    p = stats.binomtest(len(teacher - student), len(teacher ^ student)).pvalue

    text = model_card.markdown(results, "remem")

    assert "On test, it is 0.50 points below its teacher (standard error of the " in text
    assert f"p = {p:.2g})" in text
    assert "its teacher" not in str(comparisons.beside_teacher(results, "scratch"))


def test_other_predictions_of_a_seed_change_the_mean(results: dict[str, Any]) -> None:
    row = results["methods"][2]
    row["test_correct"]["students"].append(results["methods"][0]["test_correct"]["students"][0])
    both = [paired.unpack(text) for text in row["test_correct"]["students"]]

    difference = _row(results, "ReMem, student, minus Fine-tuning")[1]

    assert float(difference) == pytest.approx(
        100 * (sum(correct.mean() for correct in both) / 2 - 0.9)
    )
