"""A study's results in the layout of the paper's table, beside the paper's numbers.

As in `tables`, all is plain text, not escaped yet.
"""

import itertools
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from remem_jax.report import paper, tables
from remem_jax.storage import spreadsheets

Study = Mapping[str, Any]
Cells = Mapping[tuple[str, str], Mapping[str, Any]]

# What the settings of a cell were selected on, or how its models were trained after that.
VALIDATION, REFIT, TEST = "validation", "refit", "test"
BLOCK = 6  # Columns per grid, as in the paper's Table 1.
ROLES = ("student", "teacher")
MISSING = "missing"


class Line(NamedTuple):
    """A row of a grid.

    Attributes:
        label: Title of the row.
        cells: Two for each column of the grid, student and teacher.
        kind: "ours", "paper" or "difference".
    """

    label: str
    cells: tuple[str, ...]
    kind: str = "ours"


class Grid(NamedTuple):
    """A block of columns of a study's table, narrow enough to read.

    Attributes:
        columns: Titles, each of which spans a student and a teacher.
        groups: Titles of the groups of rows (empty if there are no groups) and their rows.
    """

    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]


def main(study: Study) -> str:
    """Returns the choice of a study's main table: `VALIDATION`, or `TEST` without such images."""
    return study.get("selection", VALIDATION)


def cells(study: Study, choice: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns the cells of a choice by row and column."""
    return {(c["row"], c["column"]): c for c in study["cells"] if c["choice"] == choice}


def percents(cell: Mapping[str, Any] | None, role: str) -> dict[int, float]:
    """Returns the finite accuracies of a cell by seed, in percent."""
    by_seed = {row["seed"]: row[role] for row in cell["replicates"]} if cell else {}
    return {
        seed: 100 * share
        for seed, share in by_seed.items()
        if share is not None and math.isfinite(share)
    }


def mean_deviation(values: Collection[float], seeds: int) -> str:
    """Formats the mean of the values, with the sample standard deviation if there are several.

    The deviation is named as one ("sd"), because "±" could be read as an interval.

    Args:
        values: At least one value, for each finished seed.
        seeds: Number of planned seeds; the text says so if fewer are finished.
    """
    notes = [f"sd {statistics.stdev(values):.2f}"] if len(values) > 1 else []
    notes += [f"{len(values)} of {seeds}"] if len(values) < seeds else []
    text = rounded(statistics.fmean(values), "z.2f")
    return f"{text} ({', '.join(notes)})" if notes else text


def row_title(row: Mapping[str, Any]) -> str:
    """Returns a row's title, prefixed by that of its group if it has one."""
    return f"{row['group']}: {row['title']}" if row.get("group") else row["title"]


def blocks(study: Study, choice: str) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Returns the columns, at most `BLOCK` at a time; only those with cells, except in `main`."""
    columns = study["columns"]
    if choice != main(study):
        filled = {column for _, column in cells(study, choice)}
        columns = [column for column in columns if column["name"] in filled]
    return (columns[start : start + BLOCK] for start in range(0, len(columns), BLOCK))


def grids(study: Study, choice: str) -> list[Grid]:
    """Builds the study's table: its numbers, the paper's, and the differences if comparable.

    Args:
        study: Contents of study.json.
        choice: `VALIDATION`, `REFIT` or `TEST`.
    """
    by_place = cells(study, choice)
    return [
        Grid(
            tuple(column["title"] for column in columns),
            tuple(
                (
                    title,
                    tuple(line for row in rows for line in _lines(study, row, columns, by_place)),
                )
                for title, rows in groups(study)
            ),
        )
        for columns in blocks(study, choice)
    ]


def groups(study: Study) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Groups consecutive rows by the title of their group."""
    pairs = itertools.groupby(study["rows"], key=lambda row: row.get("group") or "")
    return [(title, list(rows)) for title, rows in pairs]


def _lines(
    study: Study, row: Mapping[str, Any], columns: Sequence[Mapping[str, Any]], by_place: Cells
) -> Iterator[Line]:
    title, seeds = row["title"], len(study["seeds"])
    pairs = [(column, by_place.get((row["name"], column["name"]))) for column in columns]
    yield Line(title, tuple(_measured(cell, role, seeds) for _, cell in pairs for role in ROLES))
    for full_size, label in ((False, "paper"), (True, "paper, full size")):
        records = [record(study, row, column, full_size=full_size) for column in columns]
        if any(records):
            numbers = tuple(_published(published, role) for published in records for role in ROLES)
            yield Line(f"{title} ({label})", numbers, "paper")
        differences = tuple(
            signed(None if full_size else difference(study, row, column, cell, role))
            for column, cell in pairs
            for role in ROLES
        )
        if set(differences) != {tables.NOTHING}:
            yield Line(f"{title} (difference)", differences, "difference")


def _measured(cell: Mapping[str, Any] | None, role: str, seeds: int) -> str:
    if cell is None or not cell["replicates"]:
        return MISSING
    values = percents(cell, role).values()
    if values:
        return mean_deviation(values, seeds)
    return "not finite" if role == "student" else tables.NOTHING


def _published(record: paper.Record | None, role: str) -> str:
    return tables.NOTHING if record is None else f"{getattr(record, role):.1f}"


def signed(points: float | None) -> str:
    """Formats a difference in points with one decimal, as in the paper."""
    return tables.NOTHING if points is None else rounded(points, "+z.1f")


def rounded(value: float, form: str) -> str:
    """Formats a number; one that rounds to zero has no sign."""
    text = format(value, form)
    return text if float(text) else text.lstrip("+")


def is_full_size(study: Study, column: Mapping[str, Any]) -> bool:
    """Returns whether the paper's numbers are from a larger experiment or from other data."""
    data = column["data"]
    return bool(study["mini"]) or (data is not None and data["official"] is not True)


def record(
    study: Study, row: Mapping[str, Any], column: Mapping[str, Any], *, full_size: bool
) -> paper.Record | None:
    """Returns the paper's cell if `is_full_size` equals `full_size`; else None."""
    if is_full_size(study, column) != full_size:
        return None
    return paper.cell(study["table"], row["name"], column["name"])


def difference(
    study: Study,
    row: Mapping[str, Any],
    column: Mapping[str, Any],
    cell: Mapping[str, Any] | None,
    role: str,
) -> float | None:
    """Returns our mean minus the paper's number, in points; None if not comparable."""
    values = percents(cell, role).values()
    published = record(study, row, column, full_size=False)
    if published is None or not values or not paper.is_comparable(study["table"]):
        return None
    return statistics.fmean(values) - getattr(published, role)


def flat(title: str, grid: Grid) -> tables.Table:
    """Converts a grid to a table with one header row."""
    heads = [f"{column}, {role}" for column in grid.columns for role in ROLES]
    rows = [
        (f"{group}: {line.label}" if group else line.label, *line.cells)
        for group, lines in grid.groups
        for line in lines
    ]
    return tables.Table(title, ("Method", *heads), tuple(rows))


def comma_separated(study: Study) -> str:
    """Formats the study's table as CSV: one line per cell, in percent and points."""
    lines: list[Sequence[str]] = [_FIELDS]
    for choice in (VALIDATION, REFIT, TEST):
        by_place = cells(study, choice)
        for row, column in itertools.product(study["rows"], study["columns"]):
            cell = by_place.get((row["name"], column["name"]))
            if cell is not None or choice == main(study):
                lines.append(_fields(study, choice, row, column, cell))
    return spreadsheets.text(lines)


_FIELDS = (
    *("choice", "group", "row", "row_title", "column", "column_title"),
    *(f"{role}_{what}" for role in ROLES for what in ("seeds", "mean", "deviation")),
    *(f"{role}_{what}" for role in ROLES for what in ("paper", "difference")),
)


def _fields(
    study: Study,
    choice: str,
    row: Mapping[str, Any],
    column: Mapping[str, Any],
    cell: Mapping[str, Any] | None,
) -> list[str]:
    texts = (
        choice,
        row.get("group") or "",
        *(place[name] for place in (row, column) for name in _NAMES),
    )
    measured, comparison = [], []
    published = paper.cell(study["table"], row["name"], column["name"])
    for role in ROLES:
        values = percents(cell, role).values()
        measured += [
            str(len(values)),
            _decimals(statistics.fmean(values) if values else None),
            _decimals(statistics.stdev(values) if len(values) > 1 else None),
        ]
        comparison += [
            "" if published is None else f"{getattr(published, role):.1f}",
            _decimals(difference(study, row, column, cell, role)),
        ]
    return [*map(tables.printable, texts), *measured, *comparison]


_NAMES = ("name", "title")


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:z.4f}"
