"""docs/students.md lists every loss."""

from tools import make_loss_table


def test_the_table_of_losses_is_that_of_the_records() -> None:
    assert make_loss_table.PAGE.read_text() == make_loss_table.page(), (
        "A loss has changed: run .venv/bin/python -m tools.make_loss_table."
    )
    assert make_loss_table.table() in make_loss_table.PAGE.read_text()
