"""Differences between the models of a run on test, with standard errors.

As in `tables`, all is plain text, not escaped yet.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remem_jax import paired
from remem_jax.data import registry
from remem_jax.report import tables
from remem_jax.report.tables import Results, Table

_ROLES = {"students": "student", "teacher": "teacher"}


class Model(NamedTuple):
    """Correctness of a model, or of several that differ by their seed, on the test images.

    Attributes:
        method: Name of the method.
        role: "students" or "teacher".
        correct: Whether each image is classified correctly; shape (image,) or (student, image).
    """

    method: str
    role: str
    correct: np.ndarray

    @property
    def title(self) -> str:
        """Printed title of the model."""
        return f"{tables.method_title(self.method)}, {_ROLES[self.role]}"


def models(results: Results) -> list[Model]:
    """Returns the selected models of a run; empty if their predictions were not recorded."""
    selected = []
    rows: Sequence[Mapping[str, Any]] = results["methods"]
    for role, row in itertools.product(_ROLES, rows):
        packed = (row.get("test_correct") or {}).get(role)
        if packed and results["data"].get("test_labels"):
            correctness = [
                paired.unpack(text) for text in ([packed] if role == "teacher" else packed)
            ]
            correct = np.stack(correctness) if len(correctness) > 1 else correctness[0]
            selected.append(Model(row["method"], role, correct))
    return selected


def labels(results: Results) -> np.ndarray:
    """Returns the class index of each test image."""
    return paired.unpack(results["data"]["test_labels"])


def table(results: Results) -> Table | None:
    """Builds the table of pairwise differences of students and of teachers; None if unknown."""
    metric = results["data"]["metric"]
    covered = [False, True] if metric == registry.MEAN_PER_CLASS else [False]
    lines = []
    for low, high in _pairs(models(results)):
        both = high.correct, low.correct, labels(results), metric
        differences = [paired.difference(*both, over_classes=over) for over in covered]
        cells = [
            cell
            for difference in differences
            for cell in (points(difference.standard_error), tables.p_value(difference.p_value))
        ]
        title = f"{high.title}, minus {tables.method_title(low.method)}"
        lines.append((title, points(differences[0].difference, sign=True), *cells))
    if not lines:
        return None
    heads = ("Models", "Difference", "Standard error", "p")
    if len(covered) > 1:
        heads += ("Standard error, over classes too", "p, over classes too")
    return Table("Differences on test, in points", heads, tuple(lines), note=_note(results))


def _pairs(selected: Sequence[Model]) -> Iterator[tuple[Model, Model]]:
    for low, high in itertools.combinations(selected, 2):
        if low.role == high.role:
            yield low, high


def _note(results: Results) -> str:
    data = results["data"]
    images = data["examples"]["test"]
    if data["metric"] == registry.TOP1:
        p_values = (
            "p-values are two-sided: from McNemar's exact test, or from its normal approximation "
            "if means over seeds are compared."
        )
        classes = ""
    else:
        p_values = (
            "p-values are two-sided, from McNemar's statistic with images weighted as in the mean."
        )
        classes = (
            " The first standard error covers the choice of test images for these classes; the one "
            "over classes, from a paired t-test, covers the choice of classes as well."
        )
    return (
        f"Differences in {tables.METRIC_TITLES[data['metric']]}. Standard errors are paired: both "
        f"models are evaluated on the same {images:,} test images, and only images on which they "
        "differ contribute. They cover the choice of test images, not the variation between "
        f"training seeds.{classes} {p_values}"
    )


def gain(results: Results) -> str | None:
    """Describes by how many points ReMem's student beats that of a fine-tuned teacher on test."""
    metric = results["data"]["metric"]
    accuracies = {row["method"]: row["student"]["test"][metric] for row in results["methods"]}
    if not {"remem", "finetune"} <= set(accuracies):
        return None
    difference = between(results, "remem", "finetune")
    error = f" ({in_words(difference)})" if difference else ""
    far = _points(accuracies["remem"] - accuracies["finetune"])
    return f"On test, ReMem's student is {far} fine-tuning's{error}."


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.2f}"
    if size == "0.00":
        return "equal to"
    return f"{size} points {'above' if difference > 0 else 'below'}"


def between(results: Results, high: str, low: str) -> paired.Difference | None:
    """Returns the difference between two methods' students; None if it was not recorded."""
    correct = {model.method: model.correct for model in models(results) if model.role == "students"}
    if high not in correct or low not in correct:
        return None
    return paired.difference(
        correct[high], correct[low], labels(results), results["data"]["metric"]
    )


def in_words(difference: paired.Difference) -> str:
    """Describes the standard error and the p-value of a difference."""
    return (
        f"standard error of the difference {points(difference.standard_error)}, "
        f"{tables.p_equals(difference.p_value)}"
    )


def beside_teacher(results: Results, method: str) -> str | None:
    """Describes the difference between the saved student and its teacher; None if unknown.

    Args:
        results: Contents of a run's results.json.
        method: Name of a method of the run.
    """
    correct = {model.role: model.correct for model in models(results) if model.method == method}
    if set(correct) != set(_ROLES):
        return None
    metric = results["data"]["metric"]
    student = correct["students"] if correct["students"].ndim == 1 else correct["students"][0]
    difference = paired.difference(student, correct["teacher"], labels(results), metric)
    return f"On test, it is {_points(difference.difference)} its teacher ({in_words(difference)})."


def standard_errors(results: Results) -> str:
    """Lists the standard errors of the test accuracies, by the choice of test images."""
    data = results["data"]
    errors = [standard_error(results, row) for row in results["methods"]]
    names = [tables.method_title(row["method"]) for row in results["methods"]]
    listed = ", ".join(
        f"{points(error)} ({name})" for error, name in zip(errors, names, strict=True)
    )
    is_paired = any(model.role == "students" for model in models(results))
    rough = "" if is_paired or data["metric"] == registry.TOP1 else f" {_ROUGH}"
    unknown = "" if is_paired else f" {_UNPAIRED}"
    return (
        f"Standard error of each student's test accuracy, with {data['examples']['test']:,} test "
        f"images, in points: {listed}.{rough} {_seeds(results)}{unknown}"
    )


_ROUGH = "This is approximate: a mean over classes does not weight all images equally."
_UNPAIRED = (
    "These errors do not show whether two students differ: that requires the predictions for each "
    "image, which this run did not record."
)


def standard_error(
    results: Results, row: Mapping[str, Any], *, seed: int | None = None
) -> float | None:
    """Returns the standard error of the test accuracy of a method's students, as a fraction.

    Args:
        results: Contents of a run's results.json.
        row: Row of the method.
        seed: Index of the student; None for the mean over all.

    Returns:
        The standard error over the choice of test images. If the predictions were not recorded,
        the binomial standard error; None if there is no accuracy.
    """
    data = results["data"]
    for model in models(results):
        if model.method == row["method"] and model.role == "students":
            correct = (
                model.correct if seed is None or model.correct.ndim == 1 else model.correct[seed]
            )
            nothing = np.zeros(correct.shape[-1], bool)
            difference = paired.difference(correct, nothing, labels(results), data["metric"])
            return difference.standard_error
    share = (row["student"] if seed is None else row["seeds"][seed])["test"][data["metric"]]
    return None if share is None else math.sqrt(share * (1 - share) / data["examples"]["test"])


def _seeds(results: Results) -> str:
    """Describes the variation between seeds, as far as it was measured."""
    students = max(len(row.get("seeds", ())) for row in results["methods"])
    alone = (
        f"All results come from one run with one seed ({results['seed']}): the variation between"
    )
    if students < 2:
        return f"{alone} seeds was not measured."
    return (
        f"± is the sample standard deviation over {students} seeds of the students. "
        f"{alone} seeds of the teacher and of the splits was not measured."
    )


def points(share: float | None, *, sign: bool = False) -> str:
    """Formats a fraction as points with two decimals; a dash if there is none."""
    if share is None or not math.isfinite(share):
        return tables.NOTHING
    return format(100 * share, "+.2f" if sign else ".2f")
