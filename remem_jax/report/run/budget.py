"""The table of what a run with a time budget trained; see `remem_jax.budget`."""

from collections.abc import Mapping
from typing import Any

from remem_jax.report import tables
from remem_jax.report.tables import Results, Table

_KINDS = {"teacher": "teacher", "students": "student"}


def stages(results: Results) -> Table | None:
    """Builds the table of the stages in the order of their training; None for other runs."""
    budget = results.get("budget")
    if not budget:
        return None
    metric = tables.METRIC_TITLES[results["data"]["metric"]]
    heads = ("Stage", "Steps", "Learning rates", f"Best {metric}, validation", "Time")
    rows = tuple(map(_row, budget["stages"]))
    return Table("What was trained in the given time", heads, rows, note=_note(results))


def _row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    title = f"{tables.method_title(stage['method'])}, {_KINDS[stage['kind']]}"
    variant = stage["variant"]
    if variant:
        title += ", learning rates" if variant == "rung" else ", again, for longer"
    rates = ", ".join(map(tables.number, stage["learning_rates"])) or tables.NOTHING
    value, seconds = tables.percent(stage["value"]), tables.duration(stage["seconds"])
    return title, f"{stage['steps']:,}", rates, value, seconds


def left_out(results: Results) -> str:
    """Returns a sentence on the methods of a run that had no time; "" if there are none."""
    budget = results.get("budget")
    if not budget:
        return ""
    trained = {row["method"] for row in results["methods"]}
    failed = {failure["method"] for failure in results.get("failed", [])}
    hours = budget.get("left_out", {})
    names = [name for name in results["config"]["methods"] if name not in trained | failed]
    return without_time({name: hours.get(name) for name in names})


def without_time(hours: Mapping[str, float | None]) -> str:
    """Returns a sentence on methods that have no time.

    Args:
        hours: For each of them the hours of a run that would have time for it; None if unknown.

    Returns:
        "" without methods.
    """
    listed = ", ".join(
        tables.method_title(name) + (f" (needs --hours={needed:g})" if needed else "")
        for name, needed in hours.items()
    )
    reason = "Left out, because teacher and student would have too few steps"
    return f"{reason}: {listed}." if listed else ""


def _note(results: Results) -> str:
    budget = results["budget"]
    sentences = [
        f"The run had {budget['hours']:g} h and took {tables.duration(budget['seconds'])} until "
        "this report. Its steps were planned from the time of a step on this device, again after "
        "every stage, so they differ on another machine.",
        left_out(results),
    ]
    steps = {stage["steps"] for stage in budget["stages"] if stage["kind"] == "students"}
    if len(steps) > 1:
        sentences.append(
            "Students with different numbers of steps are not compared on equal terms: a part of a "
            "difference may be that of the longer training."
        )
    return " ".join(filter(None, sentences))
