"""Writes the table of recommended teachers in docs/teachers.md, from the catalogue.

    python -m tools.make_teacher_table

A test compares the page with the catalogue.
"""

import pathlib
import re

from remem_jax.weights import costs, teacher_catalog
from remem_jax.weights.costs import Cost

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "teachers.md"
_MARKED = re.compile(
    r"(?<=<!-- Made by tools/make_teacher_table.py. -->\n).*?(?=<!-- End. -->)", re.S
)


def table() -> str:
    """Returns the table, in Markdown."""
    rows = [
        (
            *("`config.teacher.init`", "parameters", "pixels", "GFLOPs", "GFLOPs at 224"),
            *("pretraining", "licence", "commercial use"),
        ),
        ("---", "---:", "---:", "---:", "---:", "---", "---", "---"),
        *(
            (
                f"`{teacher.repository}`: {teacher.note}",
                f"{_cost(teacher, 224).parameters / 1e6:.0f} M",
                str(teacher.pixels),
                f"{_cost(teacher, teacher.pixels).gflops:,.0f}",
                f"{_cost(teacher, 224).gflops:,.0f}",
                teacher.pretraining,
                teacher.licence,
                teacher.verdict,
            )
            for teacher in teacher_catalog.PUBLISHED.values()
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cost(teacher: teacher_catalog.Published, side: int) -> Cost:
    return costs.COSTS[teacher.architecture][side]


def page() -> str:
    """Returns docs/teachers.md with the current table."""
    return _MARKED.sub(lambda _: f"\n{table()}\n", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
