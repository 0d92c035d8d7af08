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


def _note(results: Results) -> str:
    budget = results["budget"]
    trained = {row["method"] for row in results["methods"]}
    left_out = [
        tables.method_title(name)
        for name in results["config"]["methods"]
        if name not in trained | {failure["method"] for failure in results["failed"]}
    ]
    sentences = [
        f"The run had {budget['hours']:g} h and took {tables.duration(budget['seconds'])} until "
        "this report. Its steps were planned from the time of a step on this device, again after "
        "every stage, so they differ on another machine."
    ]
    if left_out:
        sentences.append(f"Left out, because the time did not suffice: {', '.join(left_out)}.")
    steps = {stage["steps"] for stage in budget["stages"] if stage["kind"] == "students"}
    if len(steps) > 1:
        sentences.append(
            "Students with different numbers of steps are not compared on equal terms: a part of a "
            "difference may be that of the longer training."
        )
    return " ".join(sentences)
