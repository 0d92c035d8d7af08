"""The files written about the selected models."""

import csv
import pathlib

from remem_jax.workflow.remem import selected_models

NAMES = ("tabby, cat", 'the "dog"', "=1+1\n")
CONFUSION = [[40, 2, 0], [5, 30, 0], [0, 0, 9]]


def test_a_confusion_matrix_is_read_back_as_csv_without_formulas(tmp_path: pathlib.Path) -> None:
    shown = (*NAMES[:2], "'=1+1\n")  # The apostrophe marks text in a spreadsheet.
    selected_models.write_confusion(tmp_path / "confusion.csv", CONFUSION, NAMES)

    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        (_, *predicted), *rows = csv.reader(file)
    assert tuple(predicted) == shown
    assert tuple(name for name, *_ in rows) == shown
    assert [[int(cell) for cell in row[1:]] for row in rows] == CONFUSION


def test_a_name_that_cannot_be_encoded_does_not_stop_a_run(tmp_path: pathlib.Path) -> None:
    selected_models.write_confusion(tmp_path / "confusion.csv", [[1, 0], [0, 1]], ("a\udcff", "b"))

    assert "a\\udcff" in (tmp_path / "confusion.csv").read_text(encoding="utf-8")


def test_errors_are_listed_with_their_frequency() -> None:
    assert selected_models.most_confused(CONFUSION, NAMES) == [
        {"class": 'the "dog"', "taken_for": "tabby, cat", "images": 5, "of": 35},
        {"class": "tabby, cat", "taken_for": 'the "dog"', "images": 2, "of": 42},
    ]
