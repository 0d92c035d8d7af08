"""Trains the selected teacher and student of a method anew, on train and validation together.

The settings, and the numbers of steps, are those that were selected; no image is held out, so that
nothing is selected again. The models are tested once, beside the selected ones.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from absl import logging

from remem_jax.methods import METHODS
from remem_jax.storage import selected
from remem_jax.train import loop
from remem_jax.workflow import advice, context
from remem_jax.workflow.initial_checkpoints import Pretrained
from remem_jax.workflow.remem import distill, final_evaluation, finetune, outcome, student_setup


def of_method(
    run: context.Run,
    setup: student_setup.StudentSetup,
    pretrained: Pretrained | None,
    row: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains and tests the refitted models of a method, or reads them if they are finished.

    Args:
        run: The run.
        setup: Its students.
        pretrained: The pretrained teacher; None if no method has one.
        row: The method's row of the results, whose selected setting is used.

    Returns:
        "images", the number of training images; "student", "teacher", "seeds" and "test_correct" as
        in the row, with test metrics alone; "seconds" of each stage. If training diverged,
        "images", "seconds" and the "reason".
    """
    method = row["method"]
    run = run.for_refit()
    record: dict[str, Any] = {"images": len(run.dataset.splits["train"].rows), "seconds": {}}
    if run.config.student.class_balance:  # The loss has the weights of these images.
        setup = student_setup.make(run, pretrained)
    try:
        with advice.on_out_of_memory(f"teachers/{method}"):
            teachers = _teacher(run, pretrained, row)
        with advice.on_out_of_memory(f"students/{method}"):
            students = [trained["student"] for trained in row["seeds"]]
            groups = distill.refit(run, setup, method, teachers, students)
        chosen = outcome.candidates(groups)
        _require_finite(chosen)
    except loop.NonFiniteLossError as error:
        if not error.of_rate:
            raise
        logging.warning("%s, on train and validation: %s", METHODS[method].title, error)
        return record | {"reason": str(error)}
    if teachers:
        record["seconds"][teachers.stage] = teachers.seconds
    record["seconds"] |= {group["part"]: group["seconds"] for group in groups}
    tested = final_evaluation.test(run, setup, selected.REFIT.format(method), teachers, chosen)
    distill.discard(run, groups)
    metric = run.dataset.metric
    share = statistics.fmean(metrics[metric] for metrics in tested["students"])
    logging.info(
        "%s, on train and validation (%s images): the student has %.2f %% on test.",
        METHODS[method].title,
        f"{record['images']:,}",
        100 * share,
    )
    return record | {
        "student": {"test": outcome.means(tested["students"])},
        "teacher": teachers and {"test": tested["teacher"]},
        "seeds": [
            {"seed": student["seed"], "test": metrics}
            for student, metrics in zip(chosen, tested["students"], strict=True)
        ],
        "test_correct": final_evaluation.correct(run, tested),
    }


def _teacher(
    run: context.Run, pretrained: Pretrained | None, row: Mapping[str, Any]
) -> finetune.Teachers | None:
    """Trains the selected teacher anew; None for a method without one."""
    if pretrained is None or row["teacher_settings"] is None:
        return None
    refitted = finetune.Refitted(
        row["selected"]["teacher_step"], row["teacher_settings"]["learning_rate"]
    )
    teachers = finetune.finetune(run, pretrained, row["method"], refitted=refitted)
    # Without validation images, it is calibrated by the temperature of the selected one.
    calibration = {"calibration": row["teacher"].get("calibration")}
    return teachers._replace(records=[record | calibration for record in teachers.records])


def _require_finite(students: list[dict[str, Any]]) -> None:
    """Raises if a student diverged, so that the seeds cannot be compared with the selected ones."""
    diverged = [student for student in students if student["diverged"]]
    if diverged:
        raise loop.NonFiniteLossError(
            f"{len(diverged)} of {len(students)} students diverged", step=diverged[0]["steps"]
        )
