"""The record of each trial of a study, for its report and its table of trials."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from remem_jax.report import information, tables
from remem_jax.storage import identity, results
from remem_jax.study.space import Trial

# Settings that do not decide on the one or the other, and the seed.
_OF_STUDENT = ("seed", "student", "student_init", "information", "flatness", "choose_on_test")
_OF_TEACHER = ("seed", "methods", "teacher", "information", "flatness", "choose_on_test")
_OF_SELECTED = ("loss", "learning_rate", "temperature", "weight")


def make(
    trial: Trial,
    *,
    number: int | None,
    state: str,
    record: Mapping[str, Any] | None,
    reason: str,
) -> dict[str, Any]:
    """Returns the record of a trial, as JSON values.

    Args:
        trial: The trial.
        number: Its number; None until the queue has it.
        state: Its state.
        record: Its results; None unless it is done.
        reason: Why it failed; empty if it did not.
    """
    row = record["methods"][0] if record else None
    return {
        "trial": trial.key,
        "number": number,
        "row": trial.row,
        "column": trial.column,
        "seed": trial.seed,
        "fraction": trial.fraction,
        "settings": dict(trial.point),
        "state": state,
        "reason": reason,
        "teachers": _measured(record) if record else [],
        "checkpoints": checkpoints(record) if record else [],
        "recipes": recipes(record) if record else None,
        "selected": selected(record) if record else None,
        "validation": tables.selecting(row["student"])[record["data"]["metric"]]
        if record and row
        else None,
        "teacher_steps": trial.config.teacher.steps[-1] if row and row["teacher"] else 0,
        "student_steps": trial.config.student.steps,
        "students": len(record["students"]) if record else 0,
        "seconds": record and sum(record["seconds"].values()),
        "ascent": (row or {}).get("ascent"),
        "device": record and f"{record['device']['count']} x {record['device']['kind']}",
        "worker": record and record["worker"],
        "folder": record and record["folder"],
        "copy": record and record.get("copy", ""),
    }


def selected_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a trial selected, by name; `row` is one of its methods."""
    chosen = row["selected"]
    return {
        "teacher_step": chosen["teacher_step"],
        **{f"student.{name}": chosen[name] for name in _OF_SELECTED},
    }


def selected(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a trial selected: settings, the student of each seed, and its teacher.

    Returns:
        "settings"; "students", each with its "seed" and the numbers of "validation" and "test"; and
        "teacher" with these numbers, or None.
    """
    (row,) = record["methods"]
    return {
        "settings": selected_settings(row),
        "students": [
            {"seed": student.get("seed"), **_metrics(student)} for student in row["seeds"]
        ],
        "teacher": row["teacher"] and _metrics(row["teacher"]),
    }


def recipes(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns hashes of what makes the teacher of a trial, and of all else: settings and weights.

    Trials with the same "teacher" and seed have the same teachers; those with the same "student"
    and seed distil them in the same way, on the same images.
    """
    settings, digests = identity.deciding(record["config"]), record.get("identity") or {}
    return {
        "teacher": _hash(settings, digests.get("teacher"), without=_OF_STUDENT),
        "student": _hash(settings, digests.get("student"), without=_OF_TEACHER),
    }


def _hash(settings: Mapping[str, Any], weights: str | None, *, without: Collection[str]) -> str:
    kept = {name: value for name, value in settings.items() if name not in without}
    return results.fingerprint({"settings": kept, "weights": weights})


def checkpoints(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns all teachers of a trial, with what was measured of each.

    Returns:
        For each teacher, "step", "error", "student" (the accuracy of its best student on
        validation), and None for what was not measured: "excess" (see `information.points`),
        "calibration_error", "temperature" (which minimises the loss), "calibrated_error" (the
        calibration error at that temperature), all on validation; and "sharpness" (how much the
        loss on training images rises at distance "radius" along the gradient).
    """
    metric = record["data"]["metric"]
    rows = []
    for teacher in record["teachers"]:
        validation = teacher.get("validation") or {}
        calibration, flatness = teacher.get("calibration") or {}, teacher.get("flatness") or {}
        after = ((calibration.get("validation") or {}).get("after")) or {}
        accuracy = validation.get(metric)
        rows.append(
            {
                "step": teacher["step"],
                "error": None if accuracy is None else 1 - accuracy,
                "student": information.best_student(record, teacher),
                "excess": (teacher.get("information") or {}).get("excess"),
                "calibration_error": validation.get("calibration_error"),
                "temperature": calibration.get("temperature"),
                "calibrated_error": after.get("ece"),
                **{name: flatness.get(name) for name in ("radius", "sharpness")},
            }
        )
    return rows


def _metrics(model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the metrics of a model that are finite numbers, by split."""
    return {
        split: {
            name: value
            for name, value in (model.get(split) or {}).items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for split in ("validation", "test")
    }


def _measured(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the teachers of a trial whose information was measured, and how they were pruned."""
    teacher = record["config"]["teacher"]
    return [
        {
            **point,
            "pruned": {"MLP": teacher["pruned_mlp"], "attention": teacher["pruned_attention"]},
        }
        for point in information.points(record)
    ]
