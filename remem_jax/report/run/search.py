"""The table of what a run searched."""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.tables import Results, Table

_TRIED = {
    "learning_rate": "Learning rates",
    "temperature": "Temperatures",
    "weight": "Weights",
    "seed": "Seeds",
}


def grids(results: Results) -> Table:
    """What each method was selected from: its teacher's checkpoints, and the grid of its students.

    A value that does not count for a loss is left out.
    """
    grids: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for row in results["students"]:
        grids.setdefault((row["method"], row["loss"]), []).append(row)
    order = [row["method"] for row in results["methods"]]
    lines = [
        (
            tables.method_title(method),
            *(_values(tried, name) for name in ("teacher_step", "loss", *_TRIED)),
            f"{len(tried):,}",
        )
        for (method, _), tried in sorted(
            grids.items(),
            key=lambda grid: order.index(grid[0][0]) if grid[0][0] in order else len(order),
        )
    ]
    heads = ("Method", "Teacher's steps", "Distillation", *_TRIED.values(), "Students")
    return Table("What was searched", heads, tuple(lines), numeric=False)


def _values(tried: Sequence[Mapping[str, Any]], name: str) -> str:
    found = dict.fromkeys(row[name] for row in tried if row[name] is not None)
    return ", ".join(tables.cell(value) for value in found) or tables.NOTHING
