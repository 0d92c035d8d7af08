"""Writes the table of pretrained students in docs/students.md, from the catalogue.

    python -m tools.make_catalog_table

A test compares the page with the catalogue.
"""

import pathlib
import re

from remem_jax.models import normalisation
from remem_jax.weights import student_catalog

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "students.md"
_MARKED = re.compile(
    r"(?<=<!-- Made by tools/make_catalog_table.py. -->\n).*?(?=<!-- End. -->)", re.S
)
_NORMALISATIONS = {
    normalisation.IMAGENET: "ImageNet's",
    normalisation.IDENTITY: "0.5, 0.5",
    student_catalog.LITE: "127/255, 128/255",
}


def table() -> str:
    """Returns the table, in Markdown."""
    rows = [
        ("`config.student.init`", "top-1, %", "mean, deviation", "pretraining", "licence"),
        ("---", "---", "---", "---", "---"),
        *(
            (
                f"`{weights.name}`",
                f"{weights.top1:.1f} at {weights.test_pixels}",
                _NORMALISATIONS.get(weights.normalisation, "0, 1"),
                weights.pretraining,
                weights.licence,
            )
            for weights in student_catalog.PUBLISHED.values()
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """Returns docs/students.md with the current table."""
    return _MARKED.sub(lambda _: f"\n{table()}\n", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
