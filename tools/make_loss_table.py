"""Writes the table of losses in docs/students.md, from the records of `student_losses`.

    python -m tools.make_loss_table

A test compares the page with the records.
"""

import pathlib
import re

from remem_jax.train.student_losses import LOSSES

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "students.md"
_MARKED = re.compile(r"(?<=<!-- Made by tools/make_loss_table.py. -->\n).*?(?=<!-- End. -->)", re.S)


def table() -> str:
    """Returns the table, in Markdown."""
    rows = [
        ("loss", "", "with hard labels", "without", "in the paper"),
        ("---",) * 5,
        *(
            (
                f"`{loss.name}`",
                loss.title,
                loss.with_labels.formula,
                loss.without_labels.formula if loss.without_labels else "refused",
                "yes" if loss.in_paper else "",
            )
            for loss in LOSSES.values()
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """Returns docs/students.md with the current table."""
    return _MARKED.sub(lambda _: f"\n{table()}\n", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
