"""The outcome of a method: its selected student, tested once, with all that was tried."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from remem_jax import display
from remem_jax.methods import METHODS
from remem_jax.records import HYPERPARAMETERS
from remem_jax.settings import deciding
from remem_jax.storage import results
from remem_jax.workflow import advice, ascent, context, memory_plan, stages
from remem_jax.workflow.information import measurement
from remem_jax.workflow.remem import (
    distill,
    final_evaluation,
    finetune,
    shared_teachers,
    student_setup,
)


class Outcome(NamedTuple):
    """The result of a method, as in `results.json`.

    Attributes:
        row: Row of the main table: the selected setting and its metrics.
        teachers: All teacher checkpoints, with validation metrics.
        students: All students, with validation metrics.
        seconds: Seconds of each stage of training.
        predictions: Predictions of its selected student, by split.
    """

    row: dict[str, Any]
    teachers: list[dict[str, Any]]
    students: list[dict[str, Any]]
    seconds: dict[str, float]
    predictions: dict[str, np.ndarray]


def conclude(
    run: context.Run,
    setup: student_setup.StudentSetup,
    method: str,
    teachers: finetune.Teachers | None,
    groups: Sequence[dict[str, Any]],
) -> Outcome:
    """Selects a method's student on validation, and tests it and its teacher, once.

    Args:
        run: The run.
        setup: Its students.
        method: The method.
        teachers: Its teachers; None for a method without a teacher.
        groups: Return values of `train_students`.
    """
    seconds = {group["part"]: group["seconds"] for group in groups}
    with advice.on_out_of_memory(f"information/{method}"):
        measured = _information(run, teachers, seconds)
    metric, selection = run.dataset.metric, run.dataset.selection
    students = candidates(groups)
    chosen = sorted(
        distill.select(students, metric, split=selection),
        key=lambda student: -student[selection][metric],
    )
    best, tested = chosen[0], final_evaluation.test(run, setup, method, teachers, chosen)
    distill.discard(run, groups)
    validation = [student["validation"] for student in chosen if student["validation"]]
    row: dict[str, Any] = {
        "method": method,
        "teacher_settings": None,
        "ascent": None,
        "teacher_part": None,
        "teacher_lost": None,
        "selected": _setting(best),
        "group": {"part": best["group"]["part"], "member": best["member"]},
        "student": {
            "validation": means(validation) if validation else None,
            "test": means(tested["students"]),
        },
        "seeds": [
            {
                "seed": student["seed"],
                "student": student["student"],
                "validation": student["validation"],
                "test": test,
            }
            for student, test in zip(chosen, tested["students"], strict=True)
        ],
        "teacher": None,
        "plan": memory_plan.read(run, f"teachers/{method}"),
        "test_correct": final_evaluation.correct(run, tested),
        "on_test": _chosen_on_test(
            run, teachers, students, (best["teacher_step"], tested["teacher"])
        ),
    }
    share = row["student"]["test"][metric]
    display.result(stages.model(f"students/{method}"), share, "test")
    beside = f", its teacher {100 * tested['teacher'][metric]:.2f} %" if teachers else ""
    logging.info(
        "%s: the student has %.2f %% on test%s (%s).",
        METHODS[method].title,
        100 * share,
        beside,
        _described(row["selected"]),
    )
    if teachers:
        display.result(stages.model(f"teachers/{method}"), tested["teacher"][metric], "test")
        if shared_teachers.is_trainer(run, teachers.folder, f"teachers/{method}"):
            seconds[teachers.stage] = teachers.seconds
        names = ("rho", "mlp_weight", "attention_weight", "residual", "learning_rate")
        record = teachers.record(best["teacher_step"])
        row["teacher_settings"] = {name: teachers.settings[name] for name in names}
        row["ascent"] = ascent.record(teachers.settings, run.mesh)
        row["teacher_part"], row["teacher_lost"] = teachers.stage, teachers.lost
        row["teacher"] = {
            "validation": record["validation"],
            "test": tested["teacher"],
            "calibration": record.get("calibration")
            and {**record["calibration"], "test": tested.get("calibration")},
        }
    return Outcome(
        row,
        [{"method": method, **record, **information} for record, information in measured],
        [
            {"method": method, "teacher_step": group["teacher_step"], **student}
            for group in groups
            for student in group["students"]
        ],
        seconds,
        final_evaluation.predictions(tested),
    )


def candidates(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the students of several groups, each with its place in them, for `distill.select`."""
    return [
        {**student, "teacher_step": group["teacher_step"], "group": group, "member": member}
        for group in groups
        for member, student in enumerate(group["students"])
    ]


def _information(
    run: context.Run, teachers: finetune.Teachers | None, seconds: dict[str, float]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns each teacher's record with its information, if that is measured."""
    if not teachers:
        return []
    if not run.config.information.seeds:
        return [(record, {}) for record in teachers.records]
    stage = f"information/{teachers.method}"
    variant = f"information_{results.fingerprint(deciding(run.config)['information'])}"
    with shared_teachers.home(run, stage, variant=variant) as home:
        measured = measurement.of_teachers(home, teachers)
    if shared_teachers.is_trainer(run, home.workdir, stage):
        seconds[measured["part"]] = measured["seconds"]
    return [
        (record, {"information": information})
        for record, information in zip(teachers.records, measured["teachers"], strict=True)
    ]


def _setting(student: dict[str, Any]) -> dict[str, Any]:
    return {
        name: student[name]
        for name in ("teacher_step", "student", "loss", "steps", *HYPERPARAMETERS)
    }


def _described(setting: dict[str, Any]) -> str:
    """Describes a setting, without what its loss does not use."""
    texts = {
        "teacher_step": "teacher of step {}",
        "loss": "loss {}",
        "learning_rate": "learning rate {:g}",
        "temperature": "temperature {:g}",
        "weight": "weight {:g}",
    }
    return ", ".join(
        text.format(setting[name]) for name, text in texts.items() if setting[name] is not None
    )


def means(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages numbers over seeds; other values are those of the first seed."""
    numbers = {
        name: statistics.fmean(values[name] for values in metrics)
        for name, value in metrics[0].items()
        if isinstance(value, float | int)
    }
    return metrics[0] | numbers


def _chosen_on_test(
    run: context.Run,
    teachers: finetune.Teachers | None,
    candidates: Sequence[dict[str, Any]],
    tested_teacher: tuple[int | None, dict[str, Any] | None],
) -> dict[str, Any] | None:
    """Returns the setting that is best on test, if `config.choose_on_test` asks for it.

    `known` is the step of the teacher that was tested already, and its metrics.
    """
    if not run.config.choose_on_test or run.dataset.selection == "test":
        return None
    chosen = distill.select(candidates, run.dataset.metric, split="test")
    step, teacher = chosen[0]["teacher_step"], tested_teacher[1]
    if teachers and step != tested_teacher[0]:
        teacher = final_evaluation.test_teacher(teachers, step)
    return {
        "selected": _setting(chosen[0]),
        "student": {
            split: means([student[split] for student in chosen]) for split in ("validation", "test")
        },
        "seeds": [{"seed": student["seed"], "test": student["test"]} for student in chosen],
        "teacher": teacher and {"test": teacher},
    }
