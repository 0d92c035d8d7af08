"""The trials behind docs/evidence.md, from several studies: a table, and a study made of it.

Trials take hours on the machines that this is measured on, so that one machine seldom has all of
them. The table keeps those that are finished, and each study adds its own.
"""

import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs import evidence
from remem_jax.report.study import trial_rows

METRIC = "mean_per_class"  # That of all data sets of the page.
# Rows that distil the teacher of another row in another way.
DISTILLED_OTHERWISE = tuple(
    name for name, row in evidence.ROWS.items() if "student" in row["changes"]
)
# Columns that only mean something on the machine of the study, or for trials that failed.
_DROPPED = ("worker", "folder", "reason")
_INFORMATION = "teacher.information"
_NUMBERS_OF_TEACHER = ("temperature", "calibrated_error", "radius", "sharpness")

Row = Mapping[str, Any]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the trials of a table, with numbers where a cell has one; empty cells are absent."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: cell if name == "trial" else _value(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def add(known: Iterable[Row], studies: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Returns known trials with the finished ones of studies, which replace those of equal keys.

    Args:
        known: Rows from `read`.
        studies: Contents of study.json, each.

    Returns:
        Rows of `trial_rows.rows`, numbered from 0, in the order of data and students, steps of the
        student, seed and row.

    Raises:
        ValueError: If a trial has students of several seeds.
    """
    found = {row["trial"]: row for row in known}
    for study in studies:
        done = [row for row in trial_rows.rows(study) if row["state"] == "done"]
        if len({row["trial"] for row in done}) < len(done):
            raise ValueError("A trial of the evidence has one student: set one student.seeds.")
        for row in done:
            found[row["trial"]] = {k: v for k, v in row.items() if k not in _DROPPED}
    names = list(evidence.ROWS)
    ordered = sorted(
        found.values(),
        key=lambda row: (
            *(row["column"], row["student_steps"], row["seed"], names.index(row["row"])),
            *(row.get(name) or 0.0 for name in ("mlp_weight", "rho")),
        ),
    )
    return [{**row, "number": number} for number, row in enumerate(ordered)]


def study(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns a study of configs/evidence.py with these trials, as far as its reports need it.

    Its columns are those that were measured, each with a number of steps of the student:
    "caltech101_lite0_1200" has the trials of "caltech101_lite0" with 1,200 steps.
    """
    titles = {row["column"]: "" for row in rows}
    config = evidence.get_config(
        f"{'+'.join(dict.fromkeys(name.split('_')[0] for name in titles))},small"
    )
    measured = dict.fromkeys((row["column"], row["student_steps"]) for row in rows)
    return {
        "rows": [
            {"name": name, "title": row["title"], "group": ""}
            for name, row in evidence.ROWS.items()
        ],
        "columns": [
            {
                "name": f"{column}_{steps}",
                "title": f"{config.columns[column].title}, {steps:,} steps",
                "data": {"metric": METRIC},
            }
            for column, steps in measured
        ],
        "seeds": list(config.seeds),
        "baseline": config.baseline,
        "margin": config.margin,
        "claims": [
            {"name": name, "title": title, "row": row, "baseline": baseline}
            for name, (title, row, baseline) in evidence.CLAIMS.items()
        ],
        "search": {"seeds": list(config.search.seeds)},
        "cells": _cells(rows),
        "trials": [_trial(row) for row in rows],
    }


def column(row: Row) -> str:
    """Returns the name of a trial's column in `study`."""
    return f"{row['column']}_{row['student_steps']}"


def _value(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the cells with the trial of each seed that is best on validation."""
    best: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        by_seed = best.setdefault((row["row"], column(row)), {})
        known = by_seed.setdefault(row["seed"], row)
        if _rank(row) > _rank(known):
            by_seed[row["seed"]] = row
    return [
        {
            "row": name,
            "column": of_column,
            "choice": "validation",
            "replicates": [
                {
                    "seed": seed,
                    "trial": row["trial"],
                    **{role: row.get(f"{role}.test.{METRIC}") for role in ("student", "teacher")},
                }
                for seed, row in by_seed.items()
            ],
        }
        for (name, of_column), by_seed in best.items()
    ]


def _rank(row: Row) -> tuple[float, float]:
    return row[f"student.validation.{METRIC}"], -row["student.validation.loss"]


def _trial(row: Row) -> dict[str, Any]:
    """Returns a row as a trial of study.json, with what figures show."""
    accuracy = row.get(f"teacher.validation.{METRIC}")
    student = row[f"student.validation.{METRIC}"]
    settings = {name: row[name] for name in ("rho", "mlp_weight") if row.get(name) is not None}
    way = row["row"] if row["row"] in DISTILLED_OTHERWISE else ""
    teacher = {
        "step": row.get("teacher_step"),
        "error": None if accuracy is None else 1 - accuracy,
        "student": student,
        "excess": -row[_INFORMATION] if row.get(_INFORMATION) is not None else None,
        "calibration_error": row.get("teacher.validation.calibration_error"),
        **{name: row.get(f"teacher.{name}") for name in _NUMBERS_OF_TEACHER},
    }
    return {
        **{name: row[name] for name in ("trial", "row", "seed", "fraction", "seconds")},
        "column": column(row),
        "settings": settings,
        "validation": student,
        "selected": {"teacher": {"validation": {METRIC: accuracy}} if accuracy else None},
        "checkpoints": [teacher] if accuracy else [],
        "recipes": {"teacher": recipe(row), "student": way},
    }


def recipe(row: Row) -> str:
    """Returns a name for the way a trial makes its teacher; equal in trials that share one."""
    name = "finetune" if row["row"] in DISTILLED_OTHERWISE else row["row"]
    return f"{name} {row.get('rho')} {row.get('mlp_weight')}"
