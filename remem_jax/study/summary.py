"""Summarises the results of a study: the record for its report, and the best students so far."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from remem_jax import report
from remem_jax.methods import METHODS
from remem_jax.report import protocol
from remem_jax.report.study import differences, predictors, results_table
from remem_jax.storage import results
from remem_jax.study import (
    axes,
    comparisons,
    cost,
    progress,
    queue,
    search_summary,
    space,
    trial_records,
)
from remem_jax.study.search import Search
from remem_jax.study.space import Trial

CHOICES = (results_table.VALIDATION, results_table.REFIT, results_table.TEST)


def make(
    config: ConfigDict,
    search: Search,
    scheduled: Sequence[Trial],
    shared: queue.Queue,
    total: cost.Total,
    *,
    idle: int = 0,
) -> dict[str, Any]:
    """Returns the record of a study so far, as JSON values.

    Args:
        config: All settings of the study.
        search: Search of the study.
        scheduled: All trials scheduled so far, and finished ones that `config.only` leaves out.
        shared: Queue with the results of all workers.
        total: Estimated cost of the study.
        idle: Number of workers known to be between two trials.
    """
    keys = [trial.key for trial in scheduled]
    states, records, failures = shared.states(keys), shared.records(keys), shared.failures(keys)
    numbers = shared.numbers(keys)
    trials = [
        trial_records.make(
            trial,
            number=numbers.get(trial.key),
            state=states.get(trial.key, "waiting"),
            record=records.get(trial.key),
            reason=failures.get(trial.key, ""),
        )
        for trial in scheduled
    ]
    runs = {trial["trial"]: trial for trial in reversed(trials)}  # Cells may share a trial.
    own = [trial for key, trial in runs.items() if key in search.by_key]
    cells, missing = _cells(scheduled, records, trials)
    missing += _not_scheduled(search, scheduled)
    validation = {
        trial["trial"]: trial["validation"] for trial in trials if trial["trial"] in records
    }
    full = [
        records[trial.key] for trial in scheduled if trial.fraction == 1 and trial.key in records
    ]
    study = {
        "format": report.STUDY_FORMAT,
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
                "data": _data(name, scheduled, records),
            }
            for name in config.column_order
        ],
        "seeds": list(config.seeds),
        "only": config.only,
        "baseline": config.baseline,
        "margin": config.margin,
        "claims": _claims(config),
        "choose_on_test": bool(config.base.choose_on_test),
        "selection": space.selection(config),
        "refit": bool(config.base.data.refit),
        "cells": cells,
        "missing": missing,
        "trials": trials,
        "search": search_summary.record(config, search, scheduled, validation),
        "progress": progress.record(
            search.planned,
            list(runs.values()),
            shared.running_workers(keys),
            now=time.time(),
            idle=idle,
        ),
        "cost": {
            **total._asdict(),
            "spent_trials": sum(trial["state"] == "done" for trial in own),
            "spent_hours": sum(trial["seconds"] or 0 for trial in own) / 3600,
        },
        "differs": _differs(config, full),
        "versions": full[0]["versions"] if full else {},
    }
    computed = {
        "compared": comparisons.record(study, records),
        "differences": differences.over_seeds(study),
        "verdicts": list(differences.verdicts(study)),
        "predictors": predictors.correlations(study),
    }
    return {**study, **results.finite(computed)}


def best(study: Mapping[str, Any]) -> list[str]:
    """Returns a sentence on the best student of each cell so far, on the split that selects.

    Args:
        study: Record from `make`.
    """
    trials = {trial["trial"]: trial for trial in study["trials"]}
    lines = []
    for cell in study["cells"]:
        if cell["choice"] != study["selection"]:
            continue
        for replicate in cell["replicates"]:
            trial = trials[replicate["trial"]]
            teacher = (
                ""
                if replicate["teacher"] is None
                else f", its teacher {100 * replicate['teacher']:.2f} %"
            )
            lines.append(
                f"{cell['row']}, {cell['column']}, seed {replicate['seed']}: the best of "
                f"{replicate['students']} students so far has "
                f"{100 * replicate['student']:.2f} % on test{teacher} "
                f"({trial['folder']}/selected, on {trial['worker']})."
            )
    return lines


def _claims(config: ConfigDict) -> list[dict[str, str]]:
    """Returns the claims in the order of their rows; a config sorts them by name."""
    claims = [{"name": name, **claim.to_dict()} for name, claim in config.claims.items()]
    order = list(config.row_order).index
    return sorted(claims, key=lambda claim: (order(claim["row"]), order(claim["baseline"])))


def _cells(
    scheduled: Sequence[Trial],
    records: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the cells of the table by row, column and choice, and those without a result."""
    cells: dict[tuple[str, str, str], dict[str, Any]] = {}
    missing = []
    for cell in {trial.cell: None for trial in scheduled}:
        row, column, seed = cell
        cell_trials = [
            trial for trial in trials if (trial["row"], trial["column"], trial["seed"]) == cell
        ]
        done = [t for t in scheduled if t.cell == cell and t.fraction == 1 and t.key in records]
        if not done:
            missing.append({"row": row, "column": column, "seed": seed, "why": _why(cell_trials)})
        for choice in CHOICES if done else ():
            replicate = _replicate(choice, done, records, cell_trials)
            if replicate:
                entry = {"row": row, "column": column, "choice": choice, "replicates": []}
                cells.setdefault((row, column, choice), entry)["replicates"].append(replicate)
    return list(cells.values()), missing


def _not_scheduled(search: Search, scheduled: Sequence[Trial]) -> list[dict[str, Any]]:
    """Returns the cells that repeat a setting which is not known yet."""
    known = {trial.cell for trial in scheduled}
    return [
        {"row": row, "column": column, "seed": seed, "why": "waits for the search"}
        for row, column, seed in search.repeated
        if (row, column, seed) not in known
    ]


def _why(trials: Sequence[Mapping[str, Any]]) -> str:
    """Returns why a cell has no result yet."""
    if any(trial["state"] == "running" for trial in trials):
        return "running"
    reasons = [trial["reason"] for trial in trials if trial["state"] == "failed"]
    if reasons and len(reasons) == len(trials):
        return f"failed: {reasons[0]}"
    return "started" if any(trial["state"] == "done" for trial in trials) else "not run yet"


def _replicate(
    choice: str,
    done: Sequence[Trial],
    records: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Returns the best trial of a cell; the lower loss breaks ties, as among a trial's students."""
    shown = {trial.key: _chosen(choice, records[trial.key]["methods"][0]) for trial in done}
    rows = {key: row for key, row in shown.items() if row is not None}
    candidates = [trial for trial in done if trial.key in rows]
    if not candidates:
        return None
    metric = records[candidates[0].key]["data"]["metric"]

    def rank(trial: Trial) -> tuple[float, float]:
        student = rows[trial.key]["student"]
        metrics = student["test"] if choice == "test" else student["validation"]
        return metrics[metric], -metrics["loss"]

    chosen = max(candidates, key=rank)
    row = rows[chosen.key]
    return {
        "seed": chosen.seed,
        "student": row["student"]["test"][metric],
        "teacher": row["teacher"] and row["teacher"]["test"][metric],
        "validation": row["student"]["validation"] and row["student"]["validation"][metric],
        "students_of_seeds": [student["test"][metric] for student in row["seeds"]],
        "settings": {**chosen.point, **trial_records.selected_settings(row)},
        "trial": chosen.key,
        "trials": sum(trial["state"] == "done" for trial in trials),
        "students": sum(trial["students"] for trial in trials),
    }


def _chosen(choice: str, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns a trial's models by a choice, as a row of its results; None if it has none.

    Those of a refit keep the validation metrics of the models that were selected.
    """
    student, again = row["student"], row.get("refit") or {}
    if choice == "test":
        return row["on_test"] or (None if student["validation"] else row)
    if not student["validation"] or choice == "validation":
        return row if student["validation"] else None
    if not again.get("student"):
        return None
    refitted = {**again["student"], "validation": student["validation"]}
    return {**row, "student": refitted, "teacher": again["teacher"], "seeds": again["seeds"]}


def _data(
    column: str, scheduled: Sequence[Trial], records: Mapping[str, Any]
) -> dict[str, Any] | None:
    done = [trial for trial in scheduled if trial.column == column and trial.key in records]
    if not done:
        return None
    data = records[done[0].key]["data"]
    names = ("title", "metric", "official", "classes", "examples", "image_size")
    return {name: data[name] for name in names}


def _differs(config: ConfigDict, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the deviations of the runs from the paper, each once."""
    searched = {axes.setting(config, axis): tried for axis, tried in axes.searched(config).items()}
    sentences = dict.fromkeys([*config.differs, *protocol.of_search(searched)])
    for record in records:
        run = record["config"]
        sentences |= dict.fromkeys(run["differs"])
        # The settings that a method fixes are the paper's; a run from scratch has no teacher.
        method = METHODS[run["methods"][0]]
        free = run["teacher"].items() if method.has_teacher else ()
        teacher = {name: value for name, value in free if name not in method.fixed}
        sentences |= dict.fromkeys(protocol.deviations({**run, "teacher": teacher}))
    return list(sentences)
