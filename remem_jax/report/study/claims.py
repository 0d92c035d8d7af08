"""Sentences on the claims of a study: each holds here, does not, or the seeds cannot tell."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.report.study import differences, gains, results_table
from remem_jax.statistics import power

NOTE = (
    "A claim holds if the 95 % interval of the paired difference over seeds, in brackets, lies "
    "above 0, and the opposite holds if it lies below 0. If the interval contains 0 and lies "
    "within ±{margin:g} points (config.margin), there is no difference that matters. Otherwise "
    "these seeds cannot tell; the number that could is the smallest with which the test finds the "
    "observed mean, at the observed deviation between seeds, with a probability of 0.8. With few "
    "seeds it is a rough guide. {pooled}The conclusions are about these settings and these data; "
    "the intervals are not corrected for the number of claims."
)
_POOLED = (
    "“All columns” is the mean over the columns for each seed, tested over seeds: it allows for "
    "results of one seed that depend on each other, and says nothing of other data sets. "
)


class Sentence(NamedTuple):
    """What the seeds say of one claim.

    Attributes:
        answer: The claim and the answer, in a few words.
        details: The numbers behind it.
    """

    answer: str
    details: str


def sentences(study: results_table.Study) -> list[Sentence]:
    """Returns a sentence for each claim and column with results; none without claims.

    A claim without any result has one sentence that says so.
    """
    rows = {row["name"]: results_table.row_title(row) for row in study["rows"]}
    columns = {column["name"]: column["title"] for column in study["columns"]}
    verdicts = [v for v in differences.verdicts(study) if v["answer"] != "missing"]
    return [
        sentence
        for claim in study.get("claims", ())
        for sentence in [
            Sentence(
                f"{claim['title']}, {_place(verdict, columns)}: {answer(verdict)}",
                _details(verdict, rows, len(study["seeds"])),
            )
            for verdict in verdicts
            if verdict["claim"] == claim["name"]
        ]
        or [_unmeasured(claim, rows)]
    ]


def _unmeasured(claim: Mapping[str, Any], rows: Mapping[str, str]) -> Sentence:
    above, below = rows[claim["row"]], rows[claim["baseline"]]
    return Sentence(
        f"{claim['title']}: not measured yet.", f"{above} and {below} have no seed in common."
    )


def answer(verdict: Mapping[str, Any]) -> str:
    """Returns in a few words what the seeds say; `verdict` is one of `differences.verdicts`."""
    if verdict["answer"] == "holds":
        return f"it holds here{', by less than the margin' if verdict['is_small'] else ''}."
    if verdict["answer"] == "opposite":
        small = ", by less than the margin" if verdict["is_small"] else ""
        return f"it does not hold here: the opposite does{small}."
    if verdict["answer"] == "equivalent":
        return "it does not hold here: there is no difference that matters."
    if verdict["n"] == 1:
        return "one seed cannot tell."
    return f"{verdict['n']} seeds cannot tell{_how_many(verdict)}."


def note(study: results_table.Study) -> str:
    """Explains how the claims were decided."""
    pooled = any(verdict["column"] == differences.POOLED for verdict in differences.verdicts(study))
    return NOTE.format(margin=study.get("margin", 0.0), pooled=_POOLED if pooled else "")


def _place(verdict: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    if verdict["column"] == differences.POOLED:
        return f"all columns ({', '.join(columns[name] for name in verdict['columns'])})"
    return columns[verdict["column"]]


def _how_many(verdict: Mapping[str, Any]) -> str:
    """Says how many seeds could decide; empty if the deviation between seeds is unknown."""
    if not verdict["deviation"]:
        return ""
    if verdict["seeds_needed"] is None:
        return f"; more than {power.MOST_SEEDS:,} would be needed"
    return f"; about {verdict['seeds_needed']:,} could"


def _details(verdict: Mapping[str, Any], rows: Mapping[str, str], seeds: int) -> str:
    above, below = rows[verdict["row"]], rows[verdict["baseline"]]
    mean = differences.mean_of(verdict)
    numbers = f"{gains.interval(mean)} ({gains.certainty(mean, seeds)})"
    return f"{above} minus {below}, in points: {numbers}."
