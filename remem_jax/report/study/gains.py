"""Gains of each row of a study over its baseline, ours and the paper's.

Choices that the text of the paper leaves open affect a row and its baseline alike, so gains are
more comparable than accuracies.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.study import differences, results_table
from remem_jax.statistics.seeds import Mean

NO_INTERVAL = "no interval"
NOTE = (
    "A gain is the mean difference between a student and the baseline with the same seed, over the "
    "seeds that both have. In brackets is its 95 % interval over seeds, by the paired t-test: it "
    "covers the variation between runs. Below are the number of seeds (n), the sample standard "
    "deviation of the differences (sd) and the two-sided p-value (p). One seed has no interval, "
    "and neither have differences that are all equal. “Over test images” is another question, "
    "asked of each seed alone: how much the difference of these two students would vary with other "
    "test images (standard error, in points, and p-value). “Not on record” marks trials of an "
    "older version and settings selected on test. No interval or p-value is corrected for the "
    "number of comparisons. Choices that the paper leaves open affect both rows, so gains are more "
    "comparable with the paper's than the accuracies themselves."
)


def over_baseline(study: results_table.Study, choice: str) -> list[tables.Table]:
    """Builds the tables of gains of each row's students over those of its group's baseline.

    Gains are in points, with their intervals over seeds. Further lines have the number of seeds,
    the deviation and the p-value; and for each seed, the paired standard error over test images. A
    block of columns (six at a time) without any pair of rows has no table.
    """
    gaps = {
        (gap["baseline"], gap["row"], gap["column"]): gap
        for gap in differences.over_seeds(study)
        if gap["choice"] == choice
    }
    return [
        tables.Table(
            f"Gain of the students over the baseline: {_range(columns)}",
            ("Gain", *(column["title"] for column in columns)),
            rows,
        )
        for columns in results_table.blocks(study, choice)
        if (rows := _rows(study, columns, gaps, choice))
    ]


def interval(difference: Mean) -> str:
    """Formats a difference in points with its interval: "+1.20 [+0.30, +2.10]"."""
    text = _points(difference.mean)
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{_points(difference.low)}, {_points(difference.high)}]"


def certainty(difference: Mean, seeds: int) -> str:
    """Formats the number of seeds, the deviation and the p-value.

    Args:
        difference: The difference.
        seeds: Number of planned seeds; the text says so if fewer are finished.
    """
    text = f"n = {difference.n}" + (f" of {seeds}" if difference.n < seeds else "")
    if difference.p_value is None:
        return f"{text}, {NO_INTERVAL}"
    deviation = 100 * (difference.deviation or 0)
    return f"{text}, sd {deviation:.2f}, {tables.p_equals(difference.p_value)}"


def _points(share: float) -> str:
    return results_table.rounded(100 * share, "+z.2f")


def _range(columns: Sequence[Mapping[str, Any]]) -> str:
    first, last = columns[0]["title"], columns[-1]["title"]
    return first if len(columns) == 1 else f"{first} to {last}"


def _rows(
    study: results_table.Study,
    columns: Sequence[Mapping[str, Any]],
    gaps: Mapping[tuple[str, str, str], Mapping[str, Any]],
    choice: str,
) -> tuple[tuple[str, ...], ...]:
    """Returns the non-empty rows of our gains and the paper's; none if we have no gains."""
    rows, has_ours = [], False
    errors = _errors(study, choice)
    for baseline, row in differences.comparisons(study):
        title = f"{results_table.row_title(row)} over {baseline['title']}"
        places = [(baseline["name"], row["name"], column["name"]) for column in columns]
        ours = [gaps.get(place) for place in places]
        has_ours |= any(ours)
        published = [
            (label, [_published_gain(study, baseline, row, c, full_size=full) for c in columns])
            for full, label in ((False, "paper"), (True, "paper, full size"))
        ]
        lines = [
            *_ours(title, ours, len(study["seeds"])),
            (
                f"{title} (over test images, seed by seed)",
                [errors.get(place, tables.NOTHING) for place in places],
            ),
            *((f"{title} ({label})", them) for label, them in published),
        ]
        rows += [(label, *line) for label, line in lines if set(line) != {tables.NOTHING}]
    return tuple(rows) if has_ours else ()


def _ours(
    title: str, gaps: Sequence[Mapping[str, Any] | None], seeds: int
) -> Iterator[tuple[str, list[str]]]:
    """Yields the lines of our gains, with their labels."""
    means = [None if gap is None else differences.mean_of(gap) for gap in gaps]
    yield title, [interval(mean) if mean else tables.NOTHING for mean in means]
    yield (
        f"{title} (over seeds)",
        [certainty(mean, seeds) if mean else tables.NOTHING for mean in means],
    )


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
    return f"{100 * seed['standard_error']:.2f} ({tables.p_equals(seed['p_value'])})"


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
