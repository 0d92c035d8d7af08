"""How far the models of a run are apart on test, and what chance can do to that.

As in `tables`, all is plain text: nothing here is escaped yet.
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
    """What a model, or several that differ by their seed, said of the test images.

    Attributes:
        method: That made it.
        role: "students" or "teacher".
        correct: Whether each image is classified correctly, (image,) or (student, image).
    """

    method: str
    role: str
    correct: np.ndarray

    @property
    def title(self) -> str:
        """What to call it."""
        return f"{tables.method_title(self.method)}, {_ROLES[self.role]}"


def models(results: Results) -> list[Model]:
    """The selected models of a run; none where its record does not say what they said."""
    found = []
    rows: Sequence[Mapping[str, Any]] = results["methods"]
    for role, row in itertools.product(_ROLES, rows):
        packed = (row.get("test_correct") or {}).get(role)
        if packed and results["data"].get("test_labels"):
            several = [paired.unpack(one) for one in ([packed] if role == "teacher" else packed)]
            correct = np.stack(several) if len(several) > 1 else several[0]
            found.append(Model(row["method"], role, correct))
    return found


def _labels(results: Results) -> np.ndarray:
    return paired.unpack(results["data"]["test_labels"])


def table(results: Results) -> Table | None:
    """Each two students, and each two teachers, by how much they differ; None where unknown."""
    metric = results["data"]["metric"]
    covered = [False, True] if metric == registry.MEAN_PER_CLASS else [False]
    lines = []
    for low, high in _pairs(models(results)):
        both = high.correct, low.correct, _labels(results), metric
        found = [paired.difference(*both, over_classes=over) for over in covered]
        of_each = [cell for one in found for cell in (points(one.standard_error), p_value(one))]
        title = f"{high.title}, less {tables.method_title(low.method)}"
        lines.append((title, points(found[0].difference, sign=True), *of_each))
    if not lines:
        return None
    heads = ("Models", "Difference", "Standard error", "p")
    if len(covered) > 1:
        heads += ("Standard error, over classes too", "p, over classes too")
    return Table("Differences on test, in points", heads, tuple(lines), note=_note(results))


def _pairs(found: Sequence[Model]) -> Iterator[tuple[Model, Model]]:
    for low, high in itertools.combinations(found, 2):
        if low.role == high.role:
            yield low, high


def _note(results: Results) -> str:
    data = results["data"]
    images = data["examples"]["test"]
    if data["metric"] == registry.TOP1:
        how = "p is two-sided: McNemar's exact one, or where means over seeds are compared, its "
        how += "normal approximation."
        classes = ""
    else:
        how = "p is two-sided, of McNemar's statistic with the weights of the images in the mean."
        classes = (
            " The first error is for the same classes with as many other images of each; that over "
            "classes, of a paired t-test, is for other classes as well."
        )
    return (
        f"Differences in {tables.METRIC_TITLES[data['metric']]}. Errors are paired: both models "
        f"saw the same {images:,} test images, and only those count on which they differ. They "
        f"cover which images are in the test split, not what other seeds would give.{classes} {how}"
    )


def gain(results: Results) -> str | None:
    """How far ReMem's student is above the others on test, in points."""
    metric = results["data"]["metric"]
    found = {row["method"]: row["student"]["test"][metric] for row in results["methods"]}
    others = {"finetune": "fine-tuning's", "scratch": "the one trained from scratch"}
    gains = [
        f"{_points(found['remem'] - found[method])} {name}{_chance(results, 'remem', method)}"
        for method, name in others.items()
        if "remem" in found and method in found
    ]
    return f"On test, ReMem's student is {' and '.join(gains)}." if gains else None


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.2f}"
    if size == "0.00":
        return "level with"
    return f"{size} points {'above' if difference > 0 else 'below'}"


def _chance(results: Results, high: str, low: str) -> str:
    """Error and p of the difference between two methods' students; empty where not known."""
    of = {model.method: model.correct for model in models(results) if model.role == "students"}
    if high not in of or low not in of:
        return ""
    metric = results["data"]["metric"]
    return f" ({_in_brackets(paired.difference(of[high], of[low], _labels(results), metric))})"


def _in_brackets(found: paired.Difference) -> str:
    p = p_value(found)
    return (
        f"standard error of the difference {points(found.standard_error)}, p "
        f"{p if p.startswith('<') else f'= {p}'}"
    )


def beside_teacher(results: Results, method: str) -> str | None:
    """How far the written student is from its teacher; None where there is none, or it is unknown.

    Args:
        results: Of a run's results.json.
        method: One of the run's.
    """
    of = {model.role: model.correct for model in models(results) if model.method == method}
    if set(of) != set(_ROLES):
        return None
    metric = results["data"]["metric"]
    student = of["students"] if of["students"].ndim == 1 else of["students"][0]
    found = paired.difference(student, of["teacher"], _labels(results), metric)
    return f"On test it is {_points(found.difference)} its teacher ({_in_brackets(found)})."


def standard_errors(results: Results) -> str:
    """How far a test accuracy may be off by the luck of which images are in the test split."""
    data = results["data"]
    found = [standard_error(results, row) for row in results["methods"]]
    names = [tables.method_title(row["method"]) for row in results["methods"]]
    errors = ", ".join(f"{points(one)} ({name})" for one, name in zip(found, names, strict=True))
    known = any(model.role == "students" for model in models(results))
    rough = "" if known or data["metric"] == registry.TOP1 else f" {_ROUGH}"
    unknown = "" if known else f" {_UNPAIRED}"
    return (
        f"Standard error of each student's test accuracy, with {data['examples']['test']:,} test "
        f"images, in points: {errors}.{rough} {_seeds(results)}{unknown}"
    )


_ROUGH = "This is a rough figure: a mean over classes does not weigh all images alike."
_UNPAIRED = (
    "These errors do not tell whether two students differ: that takes what each says of each "
    "image, which the record of this run does not have."
)


def standard_error(
    results: Results, row: Mapping[str, Any], *, seed: int | None = None
) -> float | None:
    """Of the accuracy on test of a method's students, as a share.

    Args:
        results: Of a run's results.json.
        row: Of the method.
        seed: Number of the student; None is the mean over all.

    Returns:
        The error, by which images are in the test split. Without a record of what the students
        said of each image, that of the share of so many images; None where there is no share.
    """
    data = results["data"]
    for model in models(results):
        if model.method == row["method"] and model.role == "students":
            own = model.correct if seed is None or model.correct.ndim == 1 else model.correct[seed]
            nothing = np.zeros(own.shape[-1], bool)
            found = paired.difference(own, nothing, _labels(results), data["metric"])
            return found.standard_error
    share = (row["student"] if seed is None else row["seeds"][seed])["test"][data["metric"]]
    return None if share is None else math.sqrt(share * (1 - share) / data["examples"]["test"])


def _seeds(results: Results) -> str:
    """What is known of the luck of the seeds, as sentences."""
    students = max(len(row.get("seeds", ())) for row in results["methods"])
    alone = f"All of this is one run with one seed ({results['seed']}): what another seed would"
    if students < 2:
        return f"{alone} change is not measured."
    return (
        f"Behind ± stands the sample standard deviation over {students} seeds of the students. "
        f"{alone} change of the teacher and of the splits is not measured."
    )


def points(share: float | None, *, sign: bool = False) -> str:
    """A share as points with two decimals; a dash where there is none."""
    if share is None or not math.isfinite(share):
        return tables.NOTHING
    return format(100 * share, "+.2f" if sign else ".2f")


def p_value(found: paired.Difference) -> str:
    """A p-value with two digits, or how small it is at least."""
    if not math.isfinite(found.p_value):
        return tables.NOTHING
    return "< 0.0001" if found.p_value < 1e-4 else f"{found.p_value:.2g}"
