"""Tables of a report agree with values computed by hand."""

import math
from typing import Any

import pytest

from remem_jax.report import tables
from remem_jax.report.card import model_card
from remem_jax.report.run import search
from remem_jax.report.run import tables as run_tables


def _by_column(table: tables.Table, row: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[row], strict=True))


def _all_tables(results: dict[str, Any]) -> list[tables.Table]:
    makers = (
        run_tables.comparison,
        run_tables.details,
        run_tables.teachers,
        run_tables.students,
        search.grids,
        tables.settings,
        run_tables.origins,
        run_tables.times,
    )
    made = [make(results) for make in makers]
    assert all(made)
    return [table for table in made if table]


def test_every_row_has_a_cell_for_each_column(results: dict[str, Any]) -> None:
    for table in _all_tables(results):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_comparison_has_accuracies_and_selected_settings_of_each_method(
    results: dict[str, Any],
) -> None:
    table = run_tables.comparison(results)

    assert _by_column(table, 2) == {
        "Method": "ReMem",
        "Student, test": "92.50",
        "Teacher, test": "93.00",
        "Student, validation": "95.00",
        "Teacher, validation": "94.00",
        "Teacher's step": "200",
        "Learning rate": "0.1",
        "Temperature": "4",
        "Weight": "0.9",
        "rho": "0.5",
        "alpha": "0.8",
        "beta": "1",
    }


def test_comparison_omits_teacher_fields_of_students_from_scratch(
    results: dict[str, Any],
) -> None:
    row = _by_column(run_tables.comparison(results), 0)

    present = {name for name, cell in row.items() if cell != tables.NOTHING}
    assert present == {"Method", "Student, test", "Student, validation", "Learning rate"}


def test_comparison_uses_the_main_metric(results: dict[str, Any]) -> None:
    results["data"]["metric"] = "mean_per_class"

    row = _by_column(run_tables.comparison(results), 1)

    assert row["Student, test"] == "45.00"  # It is half of top-1 in these records.


def test_comparison_has_the_papers_numbers_for_official_data(results: dict[str, Any]) -> None:
    results["models"]["student"] = "efficientnet_v2"
    results["data"] |= {"name": "pcam", "official": True}

    table = run_tables.comparison(results)

    published = [(row["Paper: student"], row["Paper: teacher"]) for row in _rows(table)]
    assert published == [("–", "–"), ("90.0", "89.9"), ("91.3", "91.1")]  # noqa: RUF001


def _rows(table: tables.Table) -> list[dict[str, str]]:
    return [_by_column(table, i) for i in range(len(table.rows))]


def test_details_list_every_student_and_teacher(results: dict[str, Any]) -> None:
    rows = {row["Model"]: row for row in _rows(run_tables.details(results))}

    assert list(rows) == [
        "From scratch, student",
        "Fine-tuning, student",
        "Fine-tuning, teacher",
        "ReMem, student",
        "ReMem, teacher",
    ]
    assert rows["ReMem, student"] == {
        "Model": "ReMem, student",
        "Top-1": "92.50",
        "Top-5": "99.00",
        "Mean per class": "46.25",
        "Calibration error": "3.00",
        "Agreement": "93.50",
        "Loss": "0.5",
    }


def test_only_students_with_a_teacher_have_an_agreement(results: dict[str, Any]) -> None:
    agreements = {row["Model"]: row["Agreement"] for row in _rows(run_tables.details(results))}

    assert {name for name, cell in agreements.items() if cell != tables.NOTHING} == {
        "Fine-tuning, student",
        "ReMem, student",
    }


def test_the_errors_of_remems_student_are_listed(results: dict[str, Any]) -> None:
    results["methods"].reverse()

    table = run_tables.confused(results)

    assert table is not None
    assert "ReMem" in table.title
    assert table.rows == (("one", "zero", "20", "150"), ("zero", "one", "10", "250"))


def test_without_remem_the_errors_of_the_last_student_are_listed(results: dict[str, Any]) -> None:
    pairs = results["methods"].pop()["student"]["test"]["confused"]
    results["methods"][-1]["student"]["test"]["confused"] = pairs[:1]

    table = run_tables.confused(results)

    assert table is not None
    assert "Fine-tuning" in table.title
    assert len(table.rows) == 1


@pytest.mark.parametrize("confused", [None, []])
def test_there_is_no_table_of_unknown_errors(results: dict[str, Any], confused: Any) -> None:
    results["methods"][2]["student"]["test"]["confused"] = confused

    assert run_tables.confused(results) is None


def test_students_are_sorted_by_method_and_validation(results: dict[str, Any]) -> None:
    rows = _rows(run_tables.students(results))

    assert [(row["Method"], row["Student"]) for row in rows] == [
        ("From scratch", "1"),
        ("From scratch", "0"),
        ("Fine-tuning", "0"),
        ("Fine-tuning", "1"),
        ("ReMem", "1"),
        ("ReMem", "0"),
    ]


def test_diverged_student_is_marked_and_comes_last_of_its_method(results: dict[str, Any]) -> None:
    broken = {"top1": math.nan, "mean_per_class": math.nan, "loss": math.nan}
    results["students"][1] |= {"diverged": True, "validation": broken}

    last = _rows(run_tables.students(results))[-1]

    assert (last["Method"], last["Student"], last["Diverged"]) == ("ReMem", "1", "diverged")
    assert last["Loss"] == "not finite"


def test_settings_are_listed_by_dotted_name(results: dict[str, Any]) -> None:
    table = tables.settings(results)

    assert table.rows == (("student.losses", "kd"), ("student.learning_rate", "0.1, 0.5"))


def test_memory_plans_of_teachers_are_listed(results: dict[str, Any]) -> None:
    results["methods"][0]["plan"] = None
    results["methods"][2]["plan"] = {
        "rematerialise": "elementwise",
        "accumulate": 2,
        "bytes": 3 * 2**30,
        "compiled": True,
        "operations": 1.015,
    }

    plans = [(what, value) for what, value in run_tables.origins(results).rows if "Memory" in what]

    text = "3.00 GiB, elementwise operations recomputed, batches in 2 microbatches: 1.01 times"
    assert plans == [("Memory of remem's teacher", f"{text} the operations")]


def test_many_class_names_are_cut(results: dict[str, Any]) -> None:
    results["data"]["class_names"] = [f"class {i}" for i in range(5089)]

    (names,) = [value for what, value in run_tables.origins(results).rows if what == "Class names"]

    assert names.endswith("class 19 and 5,069 more")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (12.34, "12.3 s"),
        (59.99, "1 min 00 s"),
        (754, "12 min 34 s"),
        (3599.9, "1 h 00 min"),
        (3712.34, "1 h 01 min"),
    ],
)
def test_a_duration_is_shown_in_a_suitable_unit(seconds: float, expected: str) -> None:
    assert tables.duration(seconds) == expected


def test_times_end_with_their_sum(results: dict[str, Any]) -> None:
    assert run_tables.times(results).rows[-1] == ("Total", "1 h 01 min")  # 3,712 seconds.


@pytest.mark.parametrize(("official", "warned"), [(None, False), (True, False), (False, True)])
def test_only_unofficial_data_have_a_warning(
    results: dict[str, Any],
    official: bool | None,
    warned: bool,
) -> None:
    results["data"]["official"] = official

    assert (model_card.warning(results) is not None) == warned


def test_integers_are_accepted_as_fractions(results: dict[str, Any]) -> None:
    for row in results["students"]:
        row["validation"]["top1"] = 1  # JSON may contain an integer.

    assert {row["Top-1 accuracy"] for row in _rows(run_tables.students(results))} == {"100.00"}


def test_losses_and_seeds_are_shown_if_there_are_several(results: dict[str, Any]) -> None:
    assert "Distillation" not in run_tables.comparison(results).columns
    results["students"][0]["loss"] = "dist"
    results["methods"][2]["selected"]["loss"] = "dist"

    table = run_tables.comparison(results)

    column = table.columns.index("Distillation")
    assert [row[column] for row in table.rows] == [tables.NOTHING, "kd", "dist"]
    assert "Seed" not in table.columns
