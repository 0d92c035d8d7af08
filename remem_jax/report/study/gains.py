"""Gains of each row of a study over its baseline, ours and the paper's.

Choices that the text of the paper leaves open affect a row and its baseline alike, so gains are
more comparable than accuracies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.study import results_table


def over_baseline(study: results_table.Study, choice: str) -> list[tables.Table]:
    """Builds the tables of gains of each row's students over those of its group's baseline.

    Gains are in points. The baseline is the row of fine-tuning, or else the first row. A gain is
    the mean difference over the seeds that both rows have; its deviation is that of the
    differences. The next line gives the paired standard error of the difference on test for each
    seed. A block of columns (six at a time) without any pair of rows has no table.
    """
    cells = results_table.cells(study, choice)
    return [
        tables.Table(
            f"Gain of the students over the baseline: {_range(columns)}",
            ("Gain", *(column["title"] for column in columns)),
            rows,
        )
        for columns in results_table.blocks(study, choice)
        if (rows := _rows(study, columns, cells, choice))
    ]


def _range(columns: Sequence[Mapping[str, Any]]) -> str:
    first, last = columns[0]["title"], columns[-1]["title"]
    return first if len(columns) == 1 else f"{first} to {last}"


def _rows(
    study: results_table.Study,
    columns: Sequence[Mapping[str, Any]],
    cells: results_table.Cells,
    choice: str,
) -> tuple[tuple[str, ...], ...]:
    """Returns the non-empty rows of our gains and the paper's; none if we have no gains."""
    seeds, rows, has_ours = len(study["seeds"]), [], False
    errors = _errors(study, choice)
    for baseline, row in comparisons(study):
        pair = baseline["name"], row["name"]
        title = f"{results_table.row_title(row)} over {baseline['title']}"
        names = [[(name, column["name"]) for name in pair] for column in columns]
        ours = [_gain(cells.get(below), cells.get(above), seeds) for below, above in names]
        has_ours |= set(ours) != {tables.NOTHING}
        published = [
            (label, [_published_gain(study, baseline, row, c, full_size=full) for c in columns])
            for full, label in ((False, "paper"), (True, "paper, full size"))
        ]
        paired = [errors.get((*pair, column["name"]), tables.NOTHING) for column in columns]
        lines = [
            (title, ours),
            (f"{title} (paired error)", paired),
            *((f"{title} ({label})", them) for label, them in published),
        ]
        rows += [(label, *line) for label, line in lines if set(line) != {tables.NOTHING}]
    return tuple(rows) if has_ours else ()


def _errors(study: results_table.Study, choice: str) -> dict[tuple[str, str, str], str]:
    """Returns paired errors by baseline, row and column; empty for older studies."""
    return {
        (comparison["baseline"], comparison["row"], comparison["column"]): "; ".join(
            map(_error, comparison["seeds"])
        )
        for comparison in study.get("compared", ())
        if comparison["choice"] == choice and comparison["seeds"]
    }


def _error(seed: Mapping[str, Any]) -> str:
    if "why" in seed:
        return seed["why"]
    return f"{100 * seed['standard_error']:.2f} (p = {seed['p_value']:.2g})"


def comparisons(study: results_table.Study) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Returns each pair of a baseline and a later row of its group."""
    pairs = []
    for _, rows in results_table.groups(study):
        finetuned = [i for i, row in enumerate(rows) if row["name"].endswith("finetune")]
        first = finetuned[0] if finetuned else 0
        pairs += [(rows[first], row) for row in rows[first + 1 :]]
    return pairs


def _gain(baseline: Mapping[str, Any] | None, cell: Mapping[str, Any] | None, seeds: int) -> str:
    below, above = (
        results_table.percents(baseline, "student"),
        results_table.percents(cell, "student"),
    )
    differences = [above[seed] - below[seed] for seed in above if seed in below]
    return results_table.mean_deviation(differences, seeds, "+") if differences else tables.NOTHING


def _published_gain(
    study: results_table.Study,
    baseline: Mapping[str, Any],
    row: Mapping[str, Any],
    column: Mapping[str, Any],
    *,
    full_size: bool,
) -> str:
    below, above = (
        results_table.record(study, one, column, full_size=full_size) for one in (baseline, row)
    )
    return results_table.signed(above.student - below.student if above and below else None)
