"""The errors of a run's best student on test: per class, as a matrix, and the worst of them.

As in `tables`, all is plain text, not escaped yet. What a run of an earlier version did not record
is left out.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from remem_jax import paired
from remem_jax.report import tables
from remem_jax.report.figures import confusion
from remem_jax.report.figures.drawing import Drawing
from remem_jax.report.tables import Results, Table
from remem_jax.storage import results as stored

Classes = Int[np.ndarray, " image"]

WORST_CLASSES = 20  # Rows that are shown at once; the HTML report has the others, folded.
_WORST = (
    "Test images that the student classifies wrongly with the highest confidence. Some may have a "
    "wrong label."
)
_DRAWN = 2000  # Classes; the matrix, and the time to order it, grow with the square.


class Predictions(NamedTuple):
    """Predictions for the test images by the student that is best on validation, and a teacher.

    Attributes:
        method: Method of the student.
        labels: True classes.
        student: Classes that the student predicts.
        teacher: Classes that its teacher predicts, or if it has none, the teacher that is best on
            validation; None if the run has no teacher.
        teacher_method: Method of this teacher.
    """

    method: str
    labels: Classes
    student: Classes
    teacher: Classes | None
    teacher_method: str = ""


class Mistake(NamedTuple):
    """A test image that the student classifies wrongly with a high confidence.

    Attributes:
        file: Name of the image, in `config.data.path` if it is there.
        label: Name of its class.
        predicted: Name of the predicted class.
        confidence: Probability that the student gives to that class, in percent.
        thumbnail: The image as a data URI; "" if it could not be read.
    """

    file: str
    label: str
    predicted: str
    confidence: str
    thumbnail: str


class Errors(NamedTuple):
    """The errors of the student that is best on validation.

    Attributes:
        per_class: The `WORST_CLASSES` classes of lowest accuracy; None if not recorded.
        others: The other classes; None if there are no others.
        mistakes: The worst mistakes, most confident first.
        listed: The same without thumbnails; None if there are none.
    """

    per_class: Table | None
    others: Table | None
    mistakes: tuple[Mistake, ...]
    listed: Table | None


def read(directory: pathlib.Path, results: Results) -> Predictions | None:
    """Reads the predictions of the student that is best on validation; None if not recorded.

    Args:
        directory: Folder of the run.
        results: Contents of its results.json.
    """
    rows, metric = results["methods"], results["data"]["metric"]
    best = tables.best_on_validation(rows, metric)
    packed = _packed(directory, best["method"])
    if not packed or not results["data"].get("test_labels"):
        return None
    labels, student = results["data"]["test_labels"], packed["students"][0]
    found = Predictions(best["method"], paired.unpack(labels), paired.unpack(student), None)
    taught = [best] if best["teacher"] else [row for row in rows if row["teacher"]]
    if not taught:
        return found
    method = tables.best_on_validation(taught, metric, "teacher")["method"]
    teacher = _packed(directory, method).get("teacher")
    if not teacher:
        return found
    return found._replace(teacher=paired.unpack(teacher), teacher_method=method)


def _packed(directory: pathlib.Path, method: str) -> dict[str, Any]:
    """Returns the packed predictions of a method's models; empty if they were not recorded."""
    tested = stored.read(directory / "selected" / f"{method}.json") or {}
    return tested.get("predictions") or {}


def _best(results: Results) -> str:
    metric = results["data"]["metric"]
    return tables.best_on_validation(results["methods"], metric)["method"]


def of_run(directory: pathlib.Path, results: Results, found: Predictions | None) -> Errors:
    """Collects the errors that a run has recorded.

    Args:
        directory: Folder of the run.
        results: Contents of its results.json.
        found: Return value of `read`.
    """
    per_class = found and table(found, results["data"]["class_names"])
    others = None
    if per_class and len(per_class.rows) > WORST_CLASSES:
        others = per_class._replace(rows=per_class.rows[WORST_CLASSES:])
        per_class = per_class._replace(rows=per_class.rows[:WORST_CLASSES])
    worst = mistakes(directory, results)
    heads = ("Image", "Class", "Predicted as", "Confidence, %")
    rows = tuple((each.file, each.label, each.predicted, each.confidence) for each in worst)
    listed = Table("Worst mistakes on test", heads, rows, numeric=False, note=_WORST)
    return Errors(per_class, others, worst, listed if rows else None)


def table(found: Predictions, classes: Sequence[str]) -> Table:
    """Builds the table of accuracies per class, worst first; classes without test images have none.

    Args:
        found: The predictions.
        classes: Names of the classes.
    """
    images = np.bincount(found.labels, minlength=len(classes))
    shares = _shares(found.labels, found.student, images)
    columns = [[f"{number:,}" for number in images], _percents(shares)]
    heads = ("Class", "Test images", "Student, %")
    if found.teacher is not None:
        columns.append(_percents(_shares(found.labels, found.teacher, images)))
        is_its_own = found.teacher_method in ("", found.method)
        name = "" if is_its_own else f" ({tables.method_title(found.teacher_method)})"
        heads += (f"Teacher{name}, %",)
    mistaken = _mistaken(found, classes)
    columns.append([mistaken.get(i, tables.NOTHING) for i in range(len(classes))])
    order = np.argsort(shares, kind="stable").tolist()
    rows: list[tuple[str, ...]] = [
        (str(classes[i]), *(column[i] for column in columns)) for i in order if images[i]
    ]
    title = f"Accuracy per class on test: {tables.method_title(found.method)}, student"
    all_heads = (*heads, "Most often taken for")
    return Table(title, all_heads, tuple(rows), texts=(len(heads),))


def _shares(labels: Classes, predicted: Classes, images: np.ndarray) -> np.ndarray:
    """Returns the share of each class's images that are classified correctly."""
    correct = np.bincount(labels[predicted == labels], minlength=len(images))
    return correct / np.maximum(images, 1)


def _percents(shares: np.ndarray) -> list[str]:
    return [f"{100 * share:.1f}" for share in shares]


def _mistaken(found: Predictions, classes: Sequence[str]) -> dict[int, str]:
    """Returns, for each class with errors, the most frequent wrong prediction, and its number."""
    wrong = found.student != found.labels
    pairs, numbers = np.unique(
        np.stack([found.labels[wrong], found.student[wrong]], axis=1), axis=0, return_counts=True
    )
    most: dict[int, str] = {}
    for i in np.argsort(-numbers, kind="stable"):
        true, predicted = pairs[i].tolist()
        most.setdefault(true, f"{classes[predicted]} ({numbers[i]:,})")
    return most


def figure(found: Predictions, classes: Sequence[str]) -> Drawing | None:
    """Draws the confusion matrix of the student; None beyond `_DRAWN` classes."""
    number = len(classes)
    if number > _DRAWN:
        return None
    pairs = np.bincount(found.labels * number + found.student, minlength=number**2)
    title = f"Confusion matrix on test: {tables.method_title(found.method)}, student"
    return confusion.draw(pairs.reshape(number, number), classes, title)


def mistakes(directory: pathlib.Path, results: Results) -> tuple[Mistake, ...]:
    """Reads the worst mistakes of the student that is best on validation."""
    entries: Sequence[Mapping[str, Any]] = (
        stored.read(directory / "selected" / f"{_best(results)}_mistakes.json") or ()
    )
    classes = results["data"]["class_names"]
    path = results["config"].get("data", {}).get("path", "").rstrip("/")
    folder = f"{path}/" if path else ""
    return tuple(
        Mistake(
            entry["file"].removeprefix(folder),
            classes[entry["label"]],
            classes[entry["predicted"]],
            f"{100 * entry['confidence']:.1f}",
            entry["thumbnail"] and f"data:image/jpeg;base64,{entry['thumbnail']}",
        )
        for entry in entries
    )
