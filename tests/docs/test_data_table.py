"""docs/data_sets.md lists the splits of every data set of the paper."""

import pytest

from remem_jax.data import registry
from tools import make_data_table


def test_the_table_of_data_sets_is_that_of_the_records() -> None:
    assert make_data_table.PAGE.read_text() == make_data_table.page(), (
        "A data set has changed: run .venv/bin/python -m tools.make_data_table."
    )
    assert make_data_table.table() in make_data_table.PAGE.read_text()


def test_the_table_shows_what_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    record = registry.RECORDS["dtd"]._replace(validation="", validation_examples=0)
    official = make_data_table.table()
    monkeypatch.setitem(registry.RECORDS, "dtd", record)

    def cell(table: str, name: str) -> str:
        (row,) = (row for row in table.splitlines() if row.startswith(f"| `{name}` "))
        return row.split(" | ")[2]

    assert cell(official, "dtd") == "`validation`, 1,880"
    assert cell(make_data_table.table(), "dtd") == "held out of train"
    assert "two eyes of a patient" in cell(official, "retinopathy")
