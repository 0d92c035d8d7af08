"""How far each row of a study is above its baseline, ours and the paper's.

A gain suffers less than a number from what the text of the paper leaves open, which moves both of
the numbers that it is the difference of.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.study import results_table


def over_baseline(study: results_table.Study, choice: str) -> list[tables.Table]:
    """How far students of each row are above those of their group's baseline, in points.

    The baseline is the row of fine-tuning, or else the first. Seeds are compared with their own
    kind: a gain is the mean over those that both have, its deviation that of their differences.
    Beneath stands, for each of these seeds, the paired error of the difference on test. Columns of
    which no pair of rows is there yet, six at a time, have no table.
    """
    found = results_table.cells(study, choice)
    return [
        tables.Table(
            f"Gain of the students over the baseline's: {_range(columns)}",
            ("Gain", *(column["title"] for column in columns)),
            rows,
        )
        for columns in results_table.blocks(study, choice)
        if (rows := _rows(study, columns, found, choice))
    ]


def _range(columns: Sequence[Mapping[str, Any]]) -> str:
    first, last = columns[0]["title"], columns[-1]["title"]
    return first if len(columns) == 1 else f"{first} to {last}"


def _rows(
    study: results_table.Study,
    columns: Sequence[Mapping[str, Any]],
    found: results_table.Cells,
    choice: str,
) -> tuple[tuple[str, ...], ...]:
    """Lines of ours and of the paper's that hold something; none if none of ours does."""
    seeds, rows, any_ours = len(study["seeds"]), [], False
    errors = _errors(study, choice)
    for baseline, row in comparisons(study):
        one = baseline["name"], row["name"]
        title = f"{results_table.row_title(row)} over {baseline['title']}"
        names = [[(own, column["name"]) for own in one] for column in columns]
        ours = [_gain(found.get(below), found.get(above), seeds) for below, above in names]
        any_ours |= set(ours) != {tables.NOTHING}
        published = [
            (label, [_published_gain(study, baseline, row, c, full_size=full) for c in columns])
            for full, label in ((False, "paper"), (True, "paper, full size"))
        ]
        paired = [errors.get((*one, column["name"]), tables.NOTHING) for column in columns]
        lines = [
            (title, ours),
            (f"{title} (paired error)", paired),
            *((f"{title} ({label})", them) for label, them in published),
        ]
        rows += [(label, *line) for label, line in lines if set(line) != {tables.NOTHING}]
    return tuple(rows) if any_ours else ()


def _errors(study: results_table.Study, choice: str) -> dict[tuple[str, str, str], str]:
    """Paired errors by baseline, row and column; a study of an older version has none."""
    return {
        (one["baseline"], one["row"], one["column"]): "; ".join(map(_error, one["seeds"]))
        for one in study.get("compared", ())
        if one["choice"] == choice and one["seeds"]
    }


def _error(seed: Mapping[str, Any]) -> str:
    if "why" in seed:
        return seed["why"]
    return f"{100 * seed['standard_error']:.2f} (p = {seed['p_value']:.2g})"


def comparisons(study: results_table.Study) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of a baseline and a row of its group that comes after it."""
    pairs = []
    for _, rows in results_table.groups(study):
        tuned = [i for i, row in enumerate(rows) if row["name"].endswith("finetune")]
        first = tuned[0] if tuned else 0
        pairs += [(rows[first], row) for row in rows[first + 1 :]]
    return pairs


def _gain(baseline: Mapping[str, Any] | None, cell: Mapping[str, Any] | None, seeds: int) -> str:
    below, above = (
        results_table.percents(baseline, "student"),
        results_table.percents(cell, "student"),
    )
    differences = [above[seed] - below[seed] for seed in above if seed in below]
    return results_table.spread(differences, seeds, "+") if differences else tables.NOTHING


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
