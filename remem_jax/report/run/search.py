"""The table of the hyperparameters that a run searched."""

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
    """Builds the table of each method's teacher checkpoints and student grid.

    Hyperparameters that a loss does not use are left out.
    """
    grids: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for row in results["students"]:
        grids.setdefault((row["method"], row["loss"]), []).append(row)
    order = [row["method"] for row in results["methods"]]
    rows = [
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
    return Table("Hyperparameters searched", heads, tuple(rows), numeric=False)


def _values(tried: Sequence[Mapping[str, Any]], name: str) -> str:
    values = dict.fromkeys(row[name] for row in tried if row[name] is not None)
    return ", ".join(tables.cell(value) for value in values) or tables.NOTHING
