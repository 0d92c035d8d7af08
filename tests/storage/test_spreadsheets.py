"""CSV files whose cells spreadsheets read as text and numbers, not formulas."""

import csv
import io

import pytest

from remem_jax.storage import spreadsheets


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", '=HYPERLINK("x")'],
)
def test_no_cell_begins_like_a_formula(name: str) -> None:
    written = spreadsheets.text([("class", name), (name, 1)])

    (head, row) = csv.reader(io.StringIO(written, newline=""))
    assert head == ["class", f"'{name}"]
    assert row == [f"'{name}", "1"]


@pytest.mark.parametrize(
    "value", ["cat", "a=b", "", "-0.5", "+1e-3", -0.5, 3, None, "caf\xe9, bar"]
)
def test_other_values_are_unchanged(value: object) -> None:
    (row,) = csv.reader(io.StringIO(spreadsheets.text([(value, "x")]), newline=""))

    assert row == ["" if value is None else str(value), "x"]
