"""Writes the table of the paper's data sets in docs/data_sets.md, from the records of `registry`.

    python -m tools.make_data_table

A test compares the page with the records.
"""

import pathlib
import re

from remem_jax.data import registry
from remem_jax.data.registry import Record

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "data_sets.md"
_MARKED = re.compile(r"(?<=<!-- Made by tools/make_data_table.py. -->\n).*?(?=<!-- End. -->)", re.S)
_METRICS = {registry.TOP1: "top-1", registry.MEAN_PER_CLASS: "mean per class"}


def table() -> str:
    """Returns the table, in Markdown."""
    rows = [
        ("name", "train", "selects", "test", "metric", "why it selects"),
        ("---",) * 6,
        *(
            (
                f"`{name}`",
                _split(record.train, record.examples[0]),
                _selects(record),
                _split(record.test, record.examples[1]),
                _METRICS[record.metric],
                record.selection,
            )
            for name, record in registry.RECORDS.items()
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _split(expression: str, examples: int) -> str:
    return f"`{expression}`, {examples:,}"


def _selects(record: Record) -> str:
    """Returns the cell on what selects models."""
    if record.validation:
        return _split(record.validation, record.validation_examples)
    whole = f", without dividing {record.group.noun}" if record.group else ""
    return f"held out of train{whole}"


def page() -> str:
    """Returns docs/data_sets.md with the current table."""
    return _MARKED.sub(lambda _: f"\n{table()}\n", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
