"""What a method came to: tested once, and written in the formats of the field."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from remem_jax import evaluate, mesh
from remem_jax.records import Variables
from remem_jax.settings import tuning_of
from remem_jax.storage import files, results
from remem_jax.weights import augreg, folding, students
from remem_jax.workflow import distill, finetune, parts
from remem_jax.workflow.classroom import Classroom

PAIRS = 5  # Of classes that are confused, in the results.


def test(
    run: parts.Run,
    classroom: Classroom,
    teachers: finetune.Teachers | None,
    group: dict[str, Any],
) -> dict[str, Any]:
    """Metrics of the selected student and of its teacher on test; both are saved.

    The test split is read once: a later start takes what the first one found.

    Args:
        run: The run.
        classroom: Of its students.
        teachers: Of the method; None where the student had none.
        group: Of students, the selected one's; see `distill`.

    Returns:
        "student" and, if there is one, "teacher": see `evaluate.metrics`. The student has its
        "agreement" with its teacher and, in place of the confusion matrix, which is a file of
        its own, "confused": see `most_confused`.
    """
    folder = run.workdir / "selected"
    name = teachers.method if teachers else "scratch"
    found = results.read_for_all(folder / f"{name}.json")
    if found is None:
        best = distill.best_of(run, classroom, group["part"])
        teacher = teachers and teachers.measure.model(teachers.load(group["teacher_step"]))
        student = classroom.measure(best, "test", teacher=teacher, confusion=True)
        confusion = student.pop("confusion")
        found = {"student": student | {"confused": most_confused(confusion, run.dataset.classes)}}
        best = run.fetch(best)
        if teachers and teacher:
            found["teacher"] = teachers.measure(teacher.variables, "test")
            teacher = teacher._replace(variables=run.fetch(teacher.variables))
        if mesh.is_writer():
            write_confusion(folder / f"{name}_confusion.csv", confusion, run.dataset.classes)
            _save_student(run, folder / f"{name}_student.safetensors", best)
            if teachers and teacher:
                _save_teacher(folder / f"{name}_teacher.npz", teachers, teacher.variables)
            results.write(folder / f"{name}.json", found)
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

    What UTF-8 cannot encode in the name of a class is written as an escape.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("true / predicted", *classes))
    writer.writerows((name, *row) for name, row in zip(classes, confusion, strict=True))
    with files.replacing(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))


def _save_student(run: parts.Run, path: pathlib.Path, student: Variables) -> None:
    """Writes a student under timm's names, with what they do not say as metadata."""
    settings = run.config.student
    students.save(
        path,
        student,
        metadata={
            "model": settings.model,
            "stem": settings.stem,
            "image_size": str(run.config.data.image_size),
            "image_range": "-1 to 1",
            "classes": "\n".join(run.dataset.classes),
        },
    )


def _save_teacher(path: pathlib.Path, teachers: finetune.Teachers, teacher: Variables) -> None:
    """Writes a teacher as a plain ViT, under AugReg's names or, where there are none, others."""
    settings = teachers.settings
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
