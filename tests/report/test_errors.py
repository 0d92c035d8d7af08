"""Errors per class agree with scikit-learn; the figure and the mistakes show what was recorded."""

import base64
import io
import json
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.cluster import hierarchy
from sklearn import metrics

from remem_jax import paired, report
from remem_jax.report.figures import confusion, drawing
from remem_jax.report.run import errors

NAMES = ("cat", "dog", "owl", "elk")
LABELS = np.repeat([0, 1, 2], [40, 20, 10])  # No elk.


@pytest.fixture
def found(rng: np.random.Generator) -> errors.Predictions:
    """Predictions of a student and its teacher, with errors in all classes."""
    student, teacher = (
        np.where(rng.random(len(LABELS)) < share, LABELS, rng.integers(0, 4, len(LABELS)))
        for share in (0.5, 0.8)
    )
    return errors.Predictions("remem", LABELS, student, teacher)


def test_the_accuracies_per_class_are_scikit_learns_recalls(found: errors.Predictions) -> None:
    assert found.teacher is not None
    student, teacher = (
        metrics.classification_report(
            LABELS, predicted, labels=range(4), output_dict=True, zero_division=0.0
        )
        for predicted in (found.student, found.teacher)
    )

    rows = errors.table(found, NAMES).rows

    assert {row[0] for row in rows} == set(NAMES[:3])
    for name, images, right, teachers, _ in rows:
        label = str(NAMES.index(name))
        assert float(images) == student[label]["support"]
        assert float(right) == pytest.approx(100 * student[label]["recall"], abs=0.051)
        assert float(teachers) == pytest.approx(100 * teacher[label]["recall"], abs=0.051)
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)


def test_the_most_frequent_mistake_is_that_of_scikit_learns_matrix(
    found: errors.Predictions,
) -> None:
    matrix = metrics.confusion_matrix(LABELS, found.student, labels=range(4))
    np.fill_diagonal(matrix, 0)
    expected = {
        NAMES[i]: f"{NAMES[row.argmax()]} ({row.max()})" for i, row in enumerate(matrix[:3])
    }

    rows = errors.table(found, NAMES).rows

    assert {row[0]: row[4] for row in rows} == expected


def test_a_class_without_errors_has_no_mistake_and_a_student_without_teacher_no_column() -> None:
    table = errors.table(errors.Predictions("scratch", LABELS, LABELS, None), NAMES)

    assert table.columns == ("Class", "Test images", "Student, %", "Most often taken for")
    assert [row[2:] for row in table.rows] == [("100.0", "–")] * 3  # noqa: RUF001


def test_the_figure_holds_scikit_learns_matrix(found: errors.Predictions) -> None:
    matrix = metrics.confusion_matrix(LABELS, found.student, labels=range(4))

    drawn = errors.figure(found, NAMES)

    assert drawn is not None
    numbers = {(true, predicted): count for true, predicted, count in drawn.rows}
    assert numbers == {
        (NAMES[i], NAMES[j]): matrix[i, j] for i, j in zip(*np.nonzero(matrix), strict=True)
    }


def _confusion(classes: int, rng: np.random.Generator) -> np.ndarray:
    matrix = rng.poisson(0.02, (classes, classes))
    return matrix + np.diag(rng.integers(1, 50, classes))


@pytest.mark.parametrize(
    ("classes", "named", "counted"),
    [(2, True, True), (30, True, False), (101, False, False), (1000, False, False)],
)
def test_labels_are_drawn_while_they_fit(
    classes: int, rng: np.random.Generator, *, named: bool, counted: bool
) -> None:
    matrix = _confusion(classes, rng)
    matrix[0, 0] = 54_321

    svg = drawing.svg(confusion.draw(matrix, [f"c{i}" for i in range(classes)], "").figure, "x")

    texts = {element.text for element in ElementTree.fromstring(svg).iter()}
    assert (f"c{classes - 1}" in texts) == named
    assert ("54,321" in texts) == counted
    assert len(svg) < 500_000


def test_classes_that_are_confused_become_neighbours(rng: np.random.Generator) -> None:
    pairs = rng.permutation(40).reshape(20, 2)  # Each class is confused with one other.
    matrix = np.diag(np.full(40, 10))
    for first, second in pairs:
        matrix[first, second] = matrix[second, first] = 3

    order = confusion.similar_first(matrix).tolist()

    assert sorted(order) == list(range(40))
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in pairs)
    assert not hierarchy.is_valid_linkage(matrix.astype(float))  # The matrix is no tree itself.


def _thumbnail() -> str:
    file = io.BytesIO()
    Image.new("RGB", (96, 48), "red").save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def recorded(run: pathlib.Path, results: dict[str, Any]) -> pathlib.Path:
    """A run with predictions of ReMem's student for 25 classes, and two mistakes."""
    rng = np.random.default_rng(1)
    names = [f"class {i}" for i in range(24)] + ["<b>"]
    labels = np.arange(400) % 25
    results["config"]["data"] = {"path": "images"}
    results["data"] |= {
        "classes": 25,
        "class_names": names,
        "test_labels": paired.pack(labels),
    }
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    predicted = np.where(rng.random(400) < 0.7, labels, rng.integers(0, 25, 400))
    tested = {"predictions": {"students": [paired.pack(predicted)], "teacher": None}}
    mistake = {"image": 3, "label": 24, "predicted": 7, "confidence": 0.98765}
    mistakes = [
        {**mistake, "file": "images/<i>/1.jpg", "thumbnail": _thumbnail()},
        {**mistake, "file": "gone.jpg", "thumbnail": ""},
    ]
    selected = run / "selected"
    selected.mkdir()
    (selected / "remem.json").write_text(json.dumps(tested), encoding="utf-8")
    (selected / "remem_mistakes.json").write_text(json.dumps(mistakes), encoding="utf-8")
    return run


def test_a_report_shows_the_worst_classes_first_and_folds_the_others(
    recorded: pathlib.Path,
) -> None:
    report.write(recorded)

    page = (recorded / "report.html").read_text(encoding="utf-8")
    text = (recorded / "report.md").read_text(encoding="utf-8")
    first, rest = page.split("<details>")
    assert "<summary>5 further classes</summary>" in rest
    assert rest.split("</details>")[0].count("<tr>") == 1 + 5
    assert "These are the worst 20 of 25 classes; report.html has all." in text
    assert len(re.findall(r"^\| (class|&lt;b&gt;).* \| 16 \| ", text, flags=re.MULTILINE)) == 20
    assert "Confusion matrix on test: ReMem, student" in rest
    assert (recorded / "figures" / "confusion.png").exists()
    assert first.count("<h1>") == 1


def test_a_report_shows_the_worst_mistakes_as_escaped_text_and_pictures(
    recorded: pathlib.Path,
) -> None:
    report.write(recorded)

    page = (recorded / "report.html").read_text(encoding="utf-8")
    text = (recorded / "report.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (96, 48)
    assert "&lt;b&gt;, predicted as <strong>class 7</strong> (98.8 %)<br>&lt;i&gt;/1.jpg" in page
    assert "gone.jpg" in page
    assert "| gone.jpg | &lt;b&gt; | class 7 | 98.8 |" in text


def test_a_run_without_predictions_has_no_such_sections(run: pathlib.Path) -> None:
    report.write(run)

    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Accuracy per class" not in page
    assert "Worst mistakes" not in page
    assert not (run / "figures").exists()
