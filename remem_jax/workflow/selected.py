"""What a method came to: tested once, and written in the formats of the field."""

import pathlib
from typing import Any

from absl import logging

from remem_jax.records import Variables
from remem_jax.settings import tuning_of
from remem_jax.storage import results
from remem_jax.weights import augreg, folding, students
from remem_jax.workflow import distill, finetune, parts


def test(
    run: parts.Run,
    classroom: distill.Classroom,
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
    """
    folder = run.workdir / "selected"
    name = teachers.method if teachers else "scratch"
    found = results.read(folder / f"{name}.json")
    if found is None:
        best = distill.best_of(run, classroom, group["part"])
        found = {"student": classroom.measure(best, "test")}
        _save_student(run, folder / f"{name}_student.safetensors", best)
        if teachers:
            teacher = teachers.load(group["teacher_step"])
            found["teacher"] = teachers.measure(teacher, "test")
            _save_teacher(folder / f"{name}_teacher.npz", teachers, teacher)
        results.write(folder / f"{name}.json", found)
    return found


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
