"""What a method came to: tested once, and written in the formats of the field."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from remem_jax import evaluate, mesh, paired
from remem_jax.data.images import preprocessing
from remem_jax.records import Variables
from remem_jax.settings import tuning_of
from remem_jax.storage import files, results, spreadsheets
from remem_jax.weights import augreg, folding, students
from remem_jax.workflow import context, facts
from remem_jax.workflow.remem import distill, file_list, finetune
from remem_jax.workflow.remem.student_setup import StudentSetup

PAIRS = 5  # Of classes that are confused, in the results.


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
    name = teachers.method if teachers else "scratch"
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
            _save_student(run, f"{name}{_suffix(i, one)}", variables, own)
            for i, (one, variables, own) in enumerate(
                zip(chosen, members, measured.models, strict=True)
            )
        ]
        if teachers and teacher:
            _save_teacher(run, folder / f"{name}_teacher.npz", teachers, teacher.variables)
        found = {"students": students, "teacher": measured.teacher, "predictions": packed}
        results.write_for_all(folder / f"{name}.json", found)
    return found


def _suffix(number: int, student: dict[str, Any]) -> str:
    """Of the names of a student's files; none for the one that is best on validation."""
    return f"_seed_{student['seed']}" if number else ""


def _kept(run: context.Run, setup: StudentSetup, student: dict[str, Any]) -> Variables:
    return distill.kept(run, setup, student["group"]["part"], student["student"])


def _save_student(
    run: context.Run, name: str, variables: Variables, measured: dict[str, Any]
) -> dict[str, Any]:
    """Writes a student and its confusion matrix; its metrics, with "confused" in place of that."""
    folder, classes, confusion = (
        run.workdir / "selected",
        run.dataset.classes,
        measured["confusion"],
    )
    variables = run.fetch(variables)
    if mesh.is_writer():
        write_confusion(folder / f"{name}_confusion.csv", confusion, classes)
        _write_student(run, folder / f"{name}_student.safetensors", variables)
    others = {key: value for key, value in measured.items() if key != "confusion"}
    return others | {"confused": most_confused(confusion, classes)}


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
    path = run.workdir / teachers.part / f"step_{step}" / "test.json"
    found = results.read_for_all(path)
    if found is None:
        found = teachers.measure(teachers.load(step), "test")
        results.write_for_all(path, found)
    return found


def most_confused(
    confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The errors that are made most often, at most `PAIRS` kinds of them, most first.

    Args:
        confusion: Numbers of examples by true and by predicted class.
        classes: Their names.

    Returns:
        "class", what it is "taken_for", on how many "images", "of" how many of the class.
    """
    return [
        {
            "class": classes[true],
            "taken_for": classes[predicted],
            "images": images,
            "of": sum(confusion[true]),
        }
        for true, predicted, images in evaluate.most_confused(confusion, PAIRS)
    ]


def write_confusion(
    path: pathlib.Path, confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> None:
    """Writes a confusion matrix as CSV: a row for each true class, a column for each predicted.

    What UTF-8 cannot encode in the name of a class is written as an escape, and no name is a
    formula (`spreadsheets.cell`).
    """
    rows = [(name, *row) for name, row in zip(classes, confusion, strict=True)]
    text = spreadsheets.text([("true / predicted", *classes), *rows])
    with files.replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def _write_student(run: context.Run, path: pathlib.Path, student: Variables) -> None:
    """Writes a student under timm's names, with what they do not say as metadata."""
    settings, steps = run.config.student, facts.preprocessing_of(run)
    students.save(
        path,
        student,
        metadata={
            "model": settings.model,
            "stem": settings.stem,
            "image_size": str(steps.image_size),
            "image_range": preprocessing.RANGE,
            "stored_size": str(steps.stored_size),
            "preprocessing": json.dumps(steps.record()),
            "classes": json.dumps(run.dataset.classes),
        },
    )


def _save_teacher(
    run: context.Run, path: pathlib.Path, teachers: finetune.Teachers, teacher: Variables
) -> None:
    """Writes a teacher as a plain ViT, under AugReg's names or, where there are none, others."""
    settings, teacher = teachers.settings, run.fetch(teacher)
    if not mesh.is_writer():
        return
    if not tuning_of(settings).mergeable:
        logging.info("%s: no plain ViT holds adapters; %s is not written.", teachers.part, path)
        return
    plain = folding.fold(
        teacher["params"],
        mlp_weight=settings.mlp_weight,
        attention_weight=settings.attention_weight,
        residual=settings.residual,
        pruned_mlp=settings.pruned_mlp,
        pruned_attention=settings.pruned_attention,
    )
    augreg.save(path, plain, form=augreg.form_of(plain))
