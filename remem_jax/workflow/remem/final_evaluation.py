"""What a method came to: tested once, and written in the formats of the field."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from remem_jax import paired
from remem_jax.methods import SCRATCH
from remem_jax.records import Variables
from remem_jax.storage import results
from remem_jax.workflow import context
from remem_jax.workflow.remem import distill, file_list, finetune, selected_models
from remem_jax.workflow.remem.student_setup import StudentSetup


def test(
    run: context.Run,
    setup: StudentSetup,
    teachers: finetune.Teachers | None,
    chosen: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Metrics of the selected students and of their teacher on test; all are saved.

    The test split is read once, for all of them together: a later start takes what the first one
    found.

    Args:
        run: The run.
        setup: Of its students.
        teachers: Of the method; None where the students had none.
        chosen: The students of the selected setting, one for each seed; see `distill.select`. That
            which is best on validation comes first.

    Returns:
        "students", one of `evaluate.metrics` for each, and, if there is one, "teacher". A student
        has its "agreement" with its teacher and, in place of the confusion matrix, which is a
        file of its own, "confused": see `most_confused`. "predictions" has the classes that the
        "students" and the "teacher" put the test images into, and those of the images of
        "validation" that the first student did, each by `paired.pack`; a run that an earlier
        version tested has none.
    """
    folder = run.workdir / "selected"
    name = teachers.method if teachers else SCRATCH
    found = results.read_for_all(folder / f"{name}.json")
    if found is None:
        teacher = teachers and teachers.measure.model(teachers.load(chosen[0]["teacher_step"]))
        members = [_kept(run, setup, one) for one in chosen]
        measured = setup.measure.all(
            members, "test", teacher=teacher, confusion=True, predictions=True
        )
        validated = setup.measure(members[0], "validation", predictions=True)
        packed = {
            "students": [paired.pack(one.pop("predictions")) for one in measured.models],
            "validation": paired.pack(validated["predictions"]),
            "teacher": measured.teacher and paired.pack(measured.teacher.pop("predictions")),
        }
        students = [
            selected_models.save_student(run, f"{name}{_suffix(i, one)}", variables, own)
            for i, (one, variables, own) in enumerate(
                zip(chosen, members, measured.models, strict=True)
            )
        ]
        if teachers and teacher:
            selected_models.save_teacher(
                run, folder / f"{name}_teacher.npz", teachers, teacher.variables
            )
        found = {"students": students, "teacher": measured.teacher, "predictions": packed}
        results.write_for_all(folder / f"{name}.json", found)
    return found


def _suffix(number: int, student: dict[str, Any]) -> str:
    """Of the names of a student's files; none for the one that is best on validation."""
    return f"_seed_{student['seed']}" if number else ""


def _kept(run: context.Run, setup: StudentSetup, student: dict[str, Any]) -> Variables:
    return distill.kept(run, setup, student["group"]["part"], student["student"])


def correct(run: context.Run, tested: dict[str, Any]) -> dict[str, Any] | None:
    """Which test images were classified correctly, by `paired.pack`.

    Args:
        run: The run.
        tested: From `test`.

    Returns:
        "students", one text for each, and "teacher", or None there; None where an earlier version
        has tested them.
    """
    predictions, labels = tested.get("predictions"), run.dataset.splits["test"].labels
    if predictions is None:
        return None

    def of_model(predicted: str) -> str:
        return paired.pack(paired.unpack(predicted) == labels)

    return {
        "students": [of_model(one) for one in predictions["students"]],
        "teacher": predictions["teacher"] and of_model(predictions["teacher"]),
    }


def predictions(tested: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the first student of `test` said of the images, by split; nothing of an earlier run."""
    found = tested.get("predictions")
    if found is None:
        return {}
    packed = dict(
        zip(file_list.PREDICTED, (found["validation"], found["students"][0]), strict=True)
    )
    return {split: paired.unpack(text) for split, text in packed.items()}


def test_teacher(run: context.Run, teachers: finetune.Teachers, step: int) -> dict[str, Any]:
    """Metrics on test of a teacher that was chosen on test itself; measured once."""
    path = run.workdir / teachers.stage / f"step_{step}" / "test.json"
    found = results.read_for_all(path)
    if found is None:
        found = teachers.measure(teachers.load(step), "test")
        results.write_for_all(path, found)
    return found
