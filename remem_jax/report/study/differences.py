"""Paired differences between the rows of a study over its seeds, and what they say of its claims.

Pure functions of study.json, so that reports of older studies have them too.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax.report.study import results_table
from remem_jax.statistics import claims, seeds
from remem_jax.statistics.seeds import Mean

# Column of the mean over all columns; no column of a study can have this name.
POOLED = ""


def comparisons(study: results_table.Study) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Returns each pair of a baseline and a row of its group.

    The baseline is that of `config.baseline` in its group, with all other rows. In other groups it
    is the row of fine-tuning, or else the first, with the rows that follow it.
    """
    pairs, named = [], study.get("baseline")
    for _, rows in results_table.groups(study):
        names = [row["name"] for row in rows]
        if named in names:
            baseline = rows[names.index(named)]
            pairs += [(baseline, row) for row in rows if row is not baseline]
            continue
        finetuned = [i for i, name in enumerate(names) if name.endswith("finetune")]
        first = finetuned[0] if finetuned else 0
        pairs += [(rows[first], row) for row in rows[first + 1 :]]
    return pairs


def over_seeds(study: results_table.Study) -> list[dict[str, Any]]:
    """Returns the paired difference of each row and its baseline, in each column.

    Returns:
        For each choice and pair of cells with a common seed: "choice", "baseline", "row", "column",
        "seeds", and the fields of `seeds.Mean`, as fractions.
    """
    rows = []
    for choice in (results_table.VALIDATION, results_table.REFIT, results_table.TEST):
        by_place = results_table.cells(study, choice)
        for below, above in comparisons(study):
            for column in study["columns"]:
                names = {"baseline": below["name"], "row": above["name"], "column": column["name"]}
                gaps = _of_column(by_place, names)
                if gaps:
                    rows.append({"choice": choice, **names, **_record(gaps)})
    return rows


def verdicts(study: results_table.Study) -> Iterator[dict[str, Any]]:
    """Yields what the seeds say of each claim, by column and then over all columns together.

    The difference over all columns is, for each seed, the mean over the columns; the t-test is over
    seeds. Results of one seed in several columns may depend on each other, and this allows for it.
    There is none with one column, or with different metrics.

    Yields:
        "claim", "row" and "baseline" (names), "column" (a name, or `POOLED`), "columns" (names of
        those that the difference is about); the fields of `claims.Verdict` and, as fractions, of
        `seeds.Mean`, and "seeds". Without a common seed, "answer" is "missing", and these fields
        are absent.
    """
    by_place = results_table.cells(study, results_table.main(study))
    margin = study.get("margin", 0.0) / 100
    for claim in study.get("claims", ()):
        names = {"claim": claim["name"], "row": claim["row"], "baseline": claim["baseline"]}
        gaps = {
            column["name"]: _of_column(by_place, {**names, "column": column["name"]})
            for column in study["columns"]
        }
        measured = [column for column, by_seed in gaps.items() if by_seed]
        for column in gaps:
            yield {
                **names,
                "column": column,
                "columns": [column],
                **_verdict(gaps[column], margin),
            }
        if len(measured) > 1 and _have_one_metric(study, measured):
            common = set.intersection(*(set(gaps[column]) for column in measured))
            pooled = {
                seed: (
                    statistics.fmean(gaps[column][seed][0] for column in measured),
                    statistics.fmean(gaps[column][seed][1] for column in measured),
                )
                for seed in sorted(common)
            }
            yield {**names, "column": POOLED, "columns": measured, **_verdict(pooled, margin)}


def mean_of(record: Mapping[str, Any]) -> Mean:
    """Returns the mean in a record of `over_seeds` or `verdicts`."""
    return Mean(*(record[name] for name in Mean._fields))


def _of_column(
    by_place: results_table.Cells, names: Mapping[str, str]
) -> dict[int, tuple[float, float]]:
    """Returns the accuracies of a row and its baseline, for the seeds that both have."""
    above, below = (
        results_table.percents(by_place.get((names[role], names["column"])), "student")
        for role in ("row", "baseline")
    )
    return {seed: (above[seed] / 100, below[seed] / 100) for seed in above if seed in below}


def _record(gaps: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    above, below = zip(*gaps.values(), strict=True)
    return {"seeds": list(gaps), **seeds.difference(above, below)._asdict()}


def _verdict(gaps: Mapping[int, tuple[float, float]], margin: float) -> dict[str, Any]:
    if not gaps:
        return {"answer": "missing"}
    record = _record(gaps)
    return {**claims.verdict(mean_of(record), margin)._asdict(), **record}


def _have_one_metric(study: results_table.Study, columns: Sequence[str]) -> bool:
    metrics = {
        column["data"]["metric"]
        for column in study["columns"]
        if column["name"] in columns and column["data"]
    }
    return len(metrics) == 1
