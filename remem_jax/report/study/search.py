"""Tables of the settings that a study searched and left out.

As in `tables`, all is plain text, not escaped yet.
"""

import fractions
from collections.abc import Iterable, Mapping
from typing import Any

from remem_jax.report import tables
from remem_jax.report.study import results_table, trials


def grids(study: results_table.Study) -> tables.Table | None:
    """Builds the table of each row's grid; None for a study of an older version."""
    rows = study["search"].get("rows", ())
    if not rows:
        return None
    lines = []
    has_others = any(row["grid"].get("others") for row in rows)
    for row in rows:
        grid, titled = row["grid"], trials.titles(study)
        where = titled(row["row"], "")[0], _columns(study, row["columns"])
        lines += [
            (
                *where,
                f"{grid['settings']:,}",
                _teacher(grid),
                _values(grid["checkpoints"]),
                *([_axes(grid.get("others", {}))] if has_others else []),
                students_grid["loss"] or "none, labels only",
                *(
                    _values(students_grid[name])
                    for name in ("learning_rate", "temperature", "weight", "seed")
                ),
            )
            for students_grid in grid["students"]
        ]
    of_students = ("Distillation", "Learning rates", "Temperatures", "Weights", "Seeds")
    others = ("Other axes",) if has_others else ()
    heads = ("Row", "Columns", "Settings", "Teacher", "Its checkpoints", *others, *of_students)
    return tables.Table("Settings searched", heads, tuple(lines), numeric=False)


def _columns(study: results_table.Study, names: Iterable[str]) -> str:
    columns = {column["name"]: column["title"] for column in study["columns"]}
    if set(names) == set(columns):
        return "all"
    return ", ".join(columns.get(name, name) for name in names)


def _teacher(grid: Mapping[str, Any]) -> str:
    """Describes the teacher settings that a row varies, and those that its method fixes."""
    if not grid["checkpoints"]:
        return "none"
    varied = [_axes(grid["teacher"])] if grid["teacher"] else []
    fixed = [f"{name} fixed at {tables.number(value)}" for name, value in grid["fixed"].items()]
    return "; ".join([*varied, *fixed]) or "one setting"


def _axes(axes: Mapping[str, Iterable[Any]]) -> str:
    return "; ".join(f"{name} {_values(values)}" for name, values in axes.items()) or tables.NOTHING


def _values(values: Iterable[Any]) -> str:
    """Lists the values of an axis; one that is a list itself is in brackets."""
    texts = [
        f"({trials.setting(value)})" if isinstance(value, list | tuple) else trials.setting(value)
        for value in values
    ]
    return ", ".join(texts) or tables.NOTHING


def halving(study: results_table.Study) -> list[tables.Table]:
    """Builds the tables of the rungs and of the settings dropped on the way; none for a grid."""
    if study["search"]["kind"] == "grid" or "rungs" not in study["search"]:
        return []
    return [_rungs(study), *_dropped(study)]


def _rungs(study: results_table.Study) -> tables.Table:
    cells, titled = study["search"]["rungs"], trials.titles(study)
    shares = sorted({rung["fraction"] for cell in cells for rung in cell["rungs"]})
    lines = []
    for cell in trials.ordered(study, cells):
        by_share = {rung["fraction"]: rung for rung in cell["rungs"]}
        lines.append(
            (
                *titled(cell["row"], cell["column"]),
                str(cell["seed"]),
                f"{cell['settings']:,}",
                f"{cell['rungs'][0]['reached']:,}",
                *(_reached(by_share.get(share)) for share in shares),
            )
        )
    heads = ("Row", "Column", "Seed", "Settings", "Started", *map(_share, shares))
    note = (
        "For each fraction of the steps: the number of settings tried so far, and the number "
        "planned; a dash if the row drops no settings there."
    )
    return tables.Table("Rungs of the search", heads, tuple(lines), numeric=False, note=note)


def _reached(rung: Mapping[str, Any] | None) -> str:
    return tables.NOTHING if rung is None else f"{rung['reached']:,} of {rung['planned']:,}"


def _share(fraction: float) -> str:
    if fraction == 1:
        return "All steps"
    return f"{fractions.Fraction(fraction).limit_denominator(10**9)} of the steps"


def _dropped(study: results_table.Study) -> list[tables.Table]:
    dropped, titled = study["search"]["dropped"], trials.titles(study)
    if not dropped:
        return []
    names = trials.names(setting["settings"] for setting in dropped)
    lines = tuple(
        (
            *titled(setting["row"], setting["column"]),
            str(setting["seed"]),
            "never started"
            if setting["fraction"] is None
            else f"after {_share(setting['fraction'])}",
            setting["trial"] or tables.NOTHING,
            tables.percent(setting["validation"]),
            *(trials.setting(setting["settings"].get(name)) for name in names),
        )
        for setting in trials.ordered(study, dropped)
    )
    heads = ("Row", "Column", "Seed", "Left out", "Trial", "Best on validation", *names)
    note = (
        "Settings that never started did not fit into the budget; the others were dropped on "
        "validation."
    )
    return [tables.Table("Settings never trained in full", heads, lines, numeric=False, note=note)]
