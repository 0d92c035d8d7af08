"""The tables of calibration and flatness in the report of a run."""

from typing import Any

import pytest

from remem_jax.report.run import calibration

BEFORE, AFTER = {"nll": 0.5, "ece": 0.125}, {"nll": 0.25, "ece": 0.03125}
PAIR = {"before": BEFORE, "after": AFTER}


@pytest.fixture
def measured(results: dict[str, Any]) -> dict[str, Any]:
    """Results with the calibration and flatness of one teacher, which is selected."""
    (row,) = [row for row in results["methods"] if row["method"] == "remem"]
    step = row["selected"]["teacher_step"]
    (teacher,) = [
        record
        for record in results["teachers"]
        if (record["method"], record["step"]) == ("remem", step)
    ]
    teacher["calibration"] = {"temperature": 1.75, "validation": PAIR}
    teacher["flatness"] = {"radius": 0.05, "loss": 0.5, "worst": 0.75, "sharpness": 0.25}
    row["teacher"]["calibration"] = {"temperature": 1.75, "validation": PAIR, "test": PAIR}
    return results


def test_calibration_is_listed_for_each_split_it_was_measured_on(measured: dict[str, Any]) -> None:
    table = calibration.of_teachers(measured)

    assert table is not None
    numbers = ("1.75", "0.500", "0.250", "12.50", "3.12")
    assert [row[1:] for row in table.rows] == [("validation", *numbers), ("test", *numbers)]
    assert "as they are" in table.note


def test_the_note_says_whether_students_learned_from_calibrated_outputs(
    measured: dict[str, Any],
) -> None:
    measured["config"]["student"]["flatten"] = "calibrated"

    table = calibration.of_teachers(measured)

    assert table is not None
    assert "learned from the calibrated outputs" in table.note


def test_the_sharpness_of_a_teacher_is_listed(measured: dict[str, Any]) -> None:
    table = calibration.flatness(measured)

    assert table is not None
    (row,) = table.rows
    assert row[1:] == ("0.05", "0.500", "0.750", "0.250")


def test_results_of_earlier_versions_have_neither_table(results: dict[str, Any]) -> None:
    assert calibration.of_teachers(results) is None
    assert calibration.flatness(results) is None
