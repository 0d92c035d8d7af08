"""Tests the selected models of a method, once, and saves them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from remem_jax import paired
from remem_jax.records import Variables
from remem_jax.storage import results
from remem_jax.workflow import context
from remem_jax.workflow.remem import (
    distill,
    file_list,
    finetune,
    mistakes,
    selected_models,
    teacher_measures,
)
from remem_jax.workflow.remem.student_setup import StudentSetup


def test(
    run: context.Run,
    setup: StudentSetup,
    method: str,
    teachers: finetune.Teachers | None,
    chosen: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Evaluates the selected students and their teacher on test, and saves them.

    The test split is read once, for all models together; a resumed run reads the saved metrics. If
    more training has changed the selection since, the new models are tested.

    Args:
        run: The run.
        setup: Student setup of the run.
        method: The method.
        teachers: Its teachers; None for a method without one.
        chosen: Students of the selected configuration, one per seed, best on validation first; see
            `distill.select`.

    Returns:
        "students", the `tallies.metrics` of each, and "teacher", if there is one. A student has
        its "agreement" with its teacher and "confused" (see `most_confused`) in place of the
        confusion matrix, which is a separate file. "predictions" has the classes that the
        "students" and the "teacher" predict for the test images, and those that the first student
        predicts for "validation", None without such images, each packed by `paired.pack`;
        "mistakes" are the `mistakes.worst` of the first student, "calibration" is that of the
        teacher with the temperature from validation, None without one, and "chosen" identifies the
        students. Runs tested by earlier versions lack these four.
    """
    folder = run.workdir / "selected"
    result = results.read_for_all(folder / f"{method}.json")
    identities = [
        {"part": student["group"]["part"], "student": student["student"]} for student in chosen
    ]
    if result is None or result.get("chosen", identities) != identities:
        teacher = teachers and teachers.measure.model(teachers.load(chosen[0]["teacher_step"]))
        members = [_load_student(run, setup, student) for student in chosen]
        measured = setup.measure.all(
            members,
            "test",
            teacher=teacher,
            confusion=True,
            predictions=True,
            logits=teacher is not None,
        )
        validated, calibrated = None, None
        if "validation" in run.dataset.splits:
            validated = setup.measure(members[0], "validation", predictions=True)
        confidences = [metrics.pop("confidences") for metrics in measured.models]
        if measured.teacher:
            measured.teacher.pop("confidences")
        worst = mistakes.worst(
            measured.models[0]["predictions"], confidences[0], run.dataset.splits["test"].labels
        )
        packed = {
            "students": [paired.pack(metrics.pop("predictions")) for metrics in measured.models],
            "validation": validated and paired.pack(validated["predictions"]),
            "teacher": measured.teacher and paired.pack(measured.teacher.pop("predictions")),
        }
        students = [
            selected_models.save_student(
                run, setup, f"{method}{_suffix(i, student)}", variables, metrics
            )
            for i, (student, variables, metrics) in enumerate(
                zip(chosen, members, measured.models, strict=True)
            )
        ]
        if teachers and teacher:
            selected_models.save_teacher(run, method, teachers, teacher.variables)
        if teachers and measured.teacher:
            logits = measured.teacher.pop("logits")
            calibrated = _calibrated(run, teachers.record(chosen[0]["teacher_step"]), logits)
        result = {
            "chosen": identities,
            "students": students,
            "teacher": measured.teacher,
            "calibration": calibrated,
            "predictions": packed,
            "mistakes": worst,
        }
        results.write_for_all(folder / f"{method}.json", result)
    return result


def _calibrated(
    run: context.Run, record: dict[str, Any], logits: np.ndarray
) -> dict[str, Any] | None:
    """Returns the calibration of a teacher on test; None without a temperature from validation."""
    found = record.get("calibration")
    labels = run.dataset.splits["test"].labels
    return found and teacher_measures.before_and_after(logits, labels, found["temperature"])


def _suffix(number: int, student: dict[str, Any]) -> str:
    """Returns the suffix of a student's file names; empty for the best on validation."""
    return f"_seed_{student['seed']}" if number else ""


def _load_student(run: context.Run, setup: StudentSetup, student: dict[str, Any]) -> Variables:
    return distill.kept(run, setup, student["group"]["part"], student["student"])


def correct(run: context.Run, tested: dict[str, Any]) -> dict[str, Any] | None:
    """Returns which test images are classified correctly, packed by `paired.pack`.

    Args:
        run: The run.
        tested: Result of `test`.

    Returns:
        "students", one text for each, and "teacher", or None without one; None for a run that an
        earlier version tested.
    """
    predictions, labels = tested.get("predictions"), run.dataset.splits["test"].labels
    if predictions is None:
        return None

    def correctness(predicted: str) -> str:
        return paired.pack(paired.unpack(predicted) == labels)

    return {
        "students": [correctness(predicted) for predicted in predictions["students"]],
        "teacher": predictions["teacher"] and correctness(predictions["teacher"]),
    }


def predictions(tested: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the first student's predictions by split; empty for earlier versions."""
    packed = tested.get("predictions")
    if packed is None:
        return {}
    by_split = dict(
        zip(file_list.PREDICTED, (packed["validation"], packed["students"][0]), strict=True)
    )
    return {split: paired.unpack(text) for split, text in by_split.items() if text}


def test_teacher(teachers: finetune.Teachers, step: int) -> dict[str, Any]:
    """Evaluates on test, once, a teacher that was selected on test."""
    path = teachers.folder / teachers.stage / f"step_{step}" / "test.json"
    metrics = results.read_for_all(path)
    if metrics is None:
        metrics = teachers.measure(teachers.load(step), "test")
        results.write_for_all(path, metrics)
    return metrics
