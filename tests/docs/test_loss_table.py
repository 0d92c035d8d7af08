"""docs/students.md lists every loss."""

import dataclasses

import pytest

from remem_jax.train.student_losses import LOSSES
from tools import make_loss_table


def test_the_table_of_losses_is_that_of_the_records() -> None:
    assert make_loss_table.PAGE.read_text() == make_loss_table.page(), (
        "A loss has changed: run .venv/bin/python -m tools.make_loss_table."
    )
    assert make_loss_table.table() in make_loss_table.PAGE.read_text()


def test_the_table_shows_which_losses_need_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    record = dataclasses.replace(LOSSES["kd"], name="needy", without_labels=None)
    monkeypatch.setitem(LOSSES, "needy", record)

    (row,) = (row for row in make_loss_table.table().splitlines() if "`needy`" in row)

    assert row.split("|")[4].strip() == "refused"
