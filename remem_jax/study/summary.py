"""What a study has found: the record that its report is drawn from, and its best so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from remem_jax.report import information, protocol
from remem_jax.report.study import page as study_page
from remem_jax.settings import METHODS
from remem_jax.storage import results
from remem_jax.study import compared, cost, queue, searched
from remem_jax.study.search import Search
from remem_jax.study.space import Trial

CHOICES = ("validation", "test")


def make(
    config: ConfigDict,
    search: Search,
    wanted: Sequence[Trial],
    shared: queue.Queue,
    total: cost.Total,
) -> dict[str, Any]:
    """All that is known of a study, as JSON values.

    Args:
        config: Of the study.
        search: Its search.
        wanted: All trials that it has wanted so far.
        shared: What workers have found.
        total: What the study costs.
    """
    keys = [trial.key for trial in wanted]
    states, records, failures = shared.states(keys), shared.records(keys), shared.failures(keys)
    tried = [_tried(trial, states, records, failures) for trial in wanted]
    cells, missing = _cells(wanted, records, tried)
    validation = {one["trial"]: one["validation"] for one in tried if one["trial"] in records}
    full = [records[trial.key] for trial in wanted if trial.fraction == 1 and trial.key in records]
    found = {
        "format": study_page.FORMAT,
        "title": config.title,
        "table": config.table,
        "mini": config.mini,
        "rows": [
            {"name": name, "title": config.rows[name].title, "group": config.rows[name].group}
            for name in config.row_order
        ],
        "columns": [
            {
                "name": name,
                "title": config.columns[name].title,
                "data": _data(name, wanted, records),
            }
            for name in config.column_order
        ],
        "seeds": list(config.seeds),
        "choose_on_test": bool(config.base.choose_on_test),
        "cells": cells,
        "missing": missing,
        "trials": tried,
        "search": searched.record(config, search, wanted, validation),
        "cost": {
            **total._asdict(),
            "spent_hours": sum(one["seconds"] or 0 for one in tried) / 3600,
        },
        "differs": _differs(config, full),
        "versions": full[0]["versions"] if full else {},
    }
    return {**found, "compared": results.finite(compared.record(found, records))}


def best(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each cell of `make`: its best so far, on validation."""
    trials = {one["trial"]: one for one in found["trials"]}
    lines = []
    for cell in found["cells"]:
        if cell["choice"] != "validation":
            continue
        for one in cell["replicates"]:
            where = trials[one["trial"]]
            teacher = "" if one["teacher"] is None else f", its teacher {100 * one['teacher']:.2f}"
            lines.append(
                f"{cell['row']}, {cell['column']}, seed {one['seed']}: the best of "
                f"{one['students']} students so far has {100 * one['student']:.2f} % on test"
                f"{teacher} ({where['folder']}/selected, on {where['worker']})."
            )
    return lines


def _tried(
    trial: Trial,
    states: Mapping[str, str],
    records: Mapping[str, Any],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    record = records.get(trial.key)
    row = record["methods"][0] if record else None
    return {
        "trial": trial.key,
        "row": trial.row,
        "column": trial.column,
        "seed": trial.seed,
        "fraction": trial.fraction,
        "settings": dict(trial.point),
        "state": states.get(trial.key, "waiting"),
        "reason": failures.get(trial.key, ""),
        "teachers": _teachers(record) if record else [],
        "validation": row["student"]["validation"][record["data"]["metric"]]
        if record and row
        else None,
        "teacher_steps": trial.config.teacher.steps[-1] if row and row["teacher"] else 0,
        "student_steps": trial.config.student.steps,
        "students": len(record["students"]) if record else 0,
        "seconds": record and sum(record["seconds"].values()),
        "device": record and f"{record['device']['count']} x {record['device']['kind']}",
        "worker": record and record["worker"],
        "folder": record and record["folder"],
    }


def _teachers(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Teachers of a trial whose information was measured, with what they were pruned of."""
    own = record["config"]["teacher"]
    return [
        {**point, "pruned": {"MLP": own["pruned_mlp"], "attention": own["pruned_attention"]}}
        for point in information.points(record)
    ]


def _cells(
    wanted: Sequence[Trial],
    records: Mapping[str, Any],
    tried: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the table shows, and what it lacks: cells by row, column and seed."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    missing = []
    for cell in {trial.cell: None for trial in wanted}:
        row, column, seed = cell
        own = [one for one in tried if (one["row"], one["column"], one["seed"]) == cell]
        done = [t for t in wanted if t.cell == cell and t.fraction == 1 and t.key in records]
        if not done:
            missing.append({"row": row, "column": column, "seed": seed, "why": _why(own)})
        for choice in CHOICES if done else ():
            replicate = _replicate(choice, done, records, own)
            if replicate:
                entry = {"row": row, "column": column, "choice": choice, "replicates": []}
                found.setdefault((row, column, choice), entry)["replicates"].append(replicate)
    return list(found.values()), missing


def _why(tried: Sequence[Mapping[str, Any]]) -> str:
    if any(one["state"] == "running" for one in tried):
        return "being run"
    reasons = [one["reason"] for one in tried if one["state"] == "failed"]
    if reasons and len(reasons) == len(tried):
        return f"failed: {reasons[0]}"
    return "begun" if any(one["state"] == "done" for one in tried) else "not run yet"


def _replicate(
    choice: str,
    done: Sequence[Trial],
    records: Mapping[str, Any],
    tried: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """The best trial of a cell; equals are told apart by the loss, as students of one trial are."""

    def of(trial: Trial) -> Any:
        row = records[trial.key]["methods"][0]
        return row if choice == "validation" else row["on_test"]

    able = [trial for trial in done if of(trial)]
    if not able:
        return None
    metric = records[able[0].key]["data"]["metric"]

    def rank(trial: Trial) -> tuple[float, float]:
        metrics = of(trial)["student"][choice]
        return metrics[metric], -metrics["loss"]

    chosen = max(able, key=rank)
    row, selected = of(chosen), of(chosen)["selected"]
    own = ("loss", "learning_rate", "temperature", "weight")
    return {
        "seed": chosen.seed,
        "student": row["student"]["test"][metric],
        "teacher": row["teacher"] and row["teacher"]["test"][metric],
        "validation": row["student"]["validation"][metric],
        "students_of_seeds": [one["test"][metric] for one in row["seeds"]],
        "settings": {
            **chosen.point,
            "teacher_step": selected["teacher_step"],
            **{f"student.{name}": selected[name] for name in own},
        },
        "trial": chosen.key,
        "trials": sum(one["state"] == "done" for one in tried),
        "students": sum(one["students"] for one in tried),
    }


def _data(
    column: str, wanted: Sequence[Trial], records: Mapping[str, Any]
) -> dict[str, Any] | None:
    found = [t for t in wanted if t.column == column and t.key in records]
    if not found:
        return None
    data = records[found[0].key]["data"]
    names = ("title", "metric", "official", "classes", "examples", "image_size")
    return {name: data[name] for name in names}


def _differs(config: ConfigDict, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How runs of the study are not the paper's, each sentence once."""
    sentences = dict.fromkeys(config.differs)
    for record in records:
        own = record["config"]
        sentences |= dict.fromkeys(own["differs"])
        # What a method fixes is the paper's too, and from scratch there is no teacher.
        fixed = METHODS[own["methods"][0]]
        teacher = {k: v for k, v in own["teacher"].items() if fixed is not None and k not in fixed}
        sentences |= dict.fromkeys(protocol.deviations({**own, "teacher": teacher}))
    return list(sentences)
