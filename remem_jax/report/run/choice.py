"""Chooses between the best student and the best teacher of a run: which of them to serve.

Both are the best on validation. They are compared in accuracy on test, in the number of parameters,
and in their latency on the device of the run.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from remem_jax import paired
from remem_jax.report import tables
from remem_jax.report.run import comparisons
from remem_jax.report.tables import Results

LEVEL = 0.05  # A difference in accuracy counts if its p-value is below this.
TOLERANCE = 0.1  # Sizes and latencies that differ by less, of the larger one, count as equal.
STUDENT, TEACHER = "student", "teacher"
SIZE, ONE_IMAGE, BATCH = "size", "one image", "batch"
_LATENCIES = {ONE_IMAGE: "1", BATCH: "32"}  # Batch sizes in the results.


class Model(NamedTuple):
    """A selected model of a run.

    Attributes:
        row: The row of its method in the results.
        role: `STUDENT` or `TEACHER`.
    """

    row: Mapping[str, Any]
    role: str

    @property
    def saved(self) -> Mapping[str, Any]:
        """Metrics of the model in the file: of several seeds, the best on validation."""
        seeds = self.row.get("seeds") if self.role == STUDENT else None
        return seeds[0] if seeds else self.row[self.role]


class Costs(NamedTuple):
    """What it costs to store and to apply a model; None if it was not measured.

    Attributes:
        parameters: Number of parameters.
        bytes: Size of its file.
        operations: Floating-point operations for one image.
        milliseconds: Median latency of a batch, by `ONE_IMAGE` and `BATCH`.
    """

    parameters: int | None
    bytes: int | None
    operations: float | None
    milliseconds: Mapping[str, float]

    def measured(self) -> dict[str, float]:
        """Returns what two models are compared in: the size and both latencies, if known."""
        size = {} if self.parameters is None else {SIZE: float(self.parameters)}
        return size | dict(self.milliseconds)


class Choice(NamedTuple):
    """The recommended model, compared with the one that is not recommended.

    Attributes:
        model: The recommended model.
        other: The best model of the other role; None if the run has no teacher.
        accuracy: Accuracy on test of the recommended model minus that of the other, paired; an
            error of NaN if the predictions were not recorded. None without another model.
        better: Where the recommended model costs clearly less: `SIZE`, `ONE_IMAGE`, `BATCH`.
        worse: Where it costs clearly more.
        is_forced: Whether the teacher would be recommended, had it a file.
    """

    model: Model
    other: Model | None = None
    accuracy: paired.Difference | None = None
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    is_forced: bool = False


def choose(results: Results) -> Choice:
    """Chooses the model to serve.

    If one of the two is clearly more accurate (p below `LEVEL`) and the other costs clearly less in
    more of size and both latencies than it costs clearly more in, this is a trade, and the student
    is chosen. Otherwise the one that leads in accuracy, or in costs, is chosen; and the student if
    neither leads.

    Args:
        results: Contents of a run's results.json.
    """
    metric = results["data"]["metric"]
    student = Model(tables.best_on_validation(results["methods"], metric), STUDENT)
    taught = [row for row in results["methods"] if row["teacher"]]
    if not taught:
        return Choice(student)
    teacher = Model(tables.best_on_validation(taught, metric, TEACHER), TEACHER)
    accuracy = difference(results, student, teacher)
    cheaper, dearer = _compared(costs(results, student), costs(results, teacher))
    gain, saving = verdict(accuracy), len(cheaper) - len(dearer)
    prefers_teacher = gain <= 0 and saving <= 0 and (gain, saving) != (0, 0)
    has_file = file_of(results, teacher) is not None
    if prefers_teacher and has_file:
        turned = accuracy._replace(difference=-accuracy.difference)
        return Choice(teacher, student, turned, dearer, cheaper)
    return Choice(student, teacher, accuracy, cheaper, dearer, is_forced=prefers_teacher)


def verdict(accuracy: paired.Difference) -> int:
    """Returns 1 or -1 if a difference is clearly above or below 0; else 0.

    If its p-value is unknown, because an earlier version tested the run, its sign decides.
    """
    if accuracy.p_value >= LEVEL or math.isnan(accuracy.difference):
        return 0
    return int(np.sign(accuracy.difference))


def _compared(first: Costs, second: Costs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns where the first model costs clearly less than the second, and where more."""
    ours, theirs = first.measured(), second.measured()
    both = [name for name in ours if name in theirs]
    return (
        tuple(name for name in both if ours[name] < (1 - TOLERANCE) * theirs[name]),
        tuple(name for name in both if theirs[name] < (1 - TOLERANCE) * ours[name]),
    )


def difference(results: Results, first: Model, second: Model) -> paired.Difference:
    """Returns the difference in test accuracy of two saved models; NaN where it is not recorded."""
    metric = results["data"]["metric"]
    correct = [_correct(results, model) for model in (first, second)]
    if correct[0] is None or correct[1] is None:
        shares = [model.saved["test"][metric] for model in (first, second)]
        gap = math.nan if None in shares else shares[0] - shares[1]
        return paired.Difference(gap, math.nan, math.nan)
    return paired.difference(correct[0], correct[1], comparisons.labels(results), metric)


def standard_error(results: Results, model: Model) -> float | None:
    """Returns the standard error of a saved model's test accuracy; None if it is not recorded."""
    correct = _correct(results, model)
    if correct is None:
        return None
    nothing, metric = np.zeros_like(correct), results["data"]["metric"]
    return paired.difference(correct, nothing, comparisons.labels(results), metric).standard_error


def _correct(results: Results, model: Model) -> np.ndarray | None:
    """Returns which test images a saved model classifies correctly; None if not recorded."""
    role = {STUDENT: "students", TEACHER: "teacher"}[model.role]
    for each in comparisons.models(results):
        if (each.method, each.role) == (model.row["method"], role):
            return each.correct if each.correct.ndim == 1 else each.correct[0]
    return None


def costs(results: Results, model: Model) -> Costs:
    """Returns what a model costs, as far as the results have it; older ones have only the size."""
    measured = (results.get("inference") or {}).get(model.role) or {}
    milliseconds = measured.get("milliseconds", {})
    file = (model.row.get("files") or {}).get(model.role) or {}
    return Costs(
        measured.get("parameters", results["models"][f"{model.role}_parameters"]),
        file.get("bytes"),
        measured.get("operations"),
        {name: milliseconds[batch] for name, batch in _LATENCIES.items() if batch in milliseconds},
    )


def file_of(results: Results, model: Model) -> str | None:
    """Returns the path of a model in the run's folder; None if there is no such file.

    Older results do not list the files: their teachers without adapters have one.
    """
    if "files" in model.row:
        file = model.row["files"][model.role]
        return file and file["path"]
    method, tuning = model.row["method"], results["models"].get("tuning")
    if model.role == TEACHER:
        return None if tuning == "adapter" else f"selected/{method}_teacher.npz"
    return f"selected/{method}_student.safetensors"
