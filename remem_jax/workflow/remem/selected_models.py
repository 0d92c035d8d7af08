"""Writes the selected models of a run: students, their confusion matrices, and teachers."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from remem_jax import mesh, tallies
from remem_jax.data.images import preprocessing
from remem_jax.records import Params, Variables
from remem_jax.settings import tuning_of
from remem_jax.storage import files, selected, spreadsheets
from remem_jax.weights import (
    augreg,
    folding,
    recorded,
    student_normalisation,
    students,
    timm,
    timm_names,
)
from remem_jax.workflow import context, provenance, stages
from remem_jax.workflow.remem import finetune, student_setup

PAIRS = 5  # Number of confused pairs of classes in the results.


def save_student(
    run: context.Run,
    setup: student_setup.StudentSetup,
    name: str,
    variables: Variables,
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Writes a student and its confusion matrix; returns its metrics, with "confused" instead."""
    folder, classes, confusion = (
        run.workdir / "selected",
        run.dataset.classes,
        measured["confusion"],
    )
    variables = run.fetch(variables)
    if mesh.is_writer():
        write_confusion(folder / f"{name}_confusion.csv", confusion, classes)
        path = folder / f"{name}_student.safetensors"
        _write_student(run, setup, path, variables)
    others = {key: value for key, value in measured.items() if key != "confusion"}
    return others | {"confused": most_confused(confusion, classes)}


def most_confused(
    confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the most frequent kinds of errors, at most `PAIRS`, in descending order.

    Args:
        confusion: Number of examples by true and predicted class.
        classes: Names of the classes.

    Returns:
        "class", the predicted class ("taken_for"), the number of "images", and "of" how many images
        of the class.
    """
    return [
        {
            "class": classes[true],
            "taken_for": classes[predicted],
            "images": images,
            "of": sum(confusion[true]),
        }
        for true, predicted, images in tallies.most_confused(confusion, PAIRS)
    ]


def write_confusion(
    path: pathlib.Path, confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> None:
    """Writes a confusion matrix as CSV: a row for each true class, a column for each predicted one.

    Characters that UTF-8 cannot encode are escaped, and no name is read as a formula
    (`spreadsheets.cell`).
    """
    rows = [(name, *row) for name, row in zip(classes, confusion, strict=True)]
    text = spreadsheets.text([("true / predicted", *classes), *rows])
    with files.replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def _write_student(
    run: context.Run, setup: student_setup.StudentSetup, path: pathlib.Path, student: Variables
) -> None:
    """Writes a student under timm's parameter names, with other properties as metadata."""
    settings, steps = run.config.student, provenance.preprocessing_of(run)
    students.save(
        path,
        student,
        metadata={
            "model": settings.model,
            "stem": settings.stem,
            "image_size": str(steps.image_size),
            "image_range": preprocessing.RANGE,
            "architecture": json.dumps(dict(setup.architecture), sort_keys=True),
            **student_normalisation.texts(setup.normalisation),
            "stored_size": str(steps.stored_size),
            "crop": str(steps.crop),
            "preprocessing": json.dumps(steps.record()),
            "classes": json.dumps(run.dataset.classes),
        },
    )


def save_teacher(
    run: context.Run, name: str, teachers: finetune.Teachers, teacher: Variables
) -> None:
    """Writes a teacher as a plain ViT, with the names of a project that has its network.

    These are timm's if it started from such a file, or has a GELU by erf; otherwise AugReg's, or
    big_vision's if AugReg has no such ViT. The file begins with `name`: the method, or that of a
    refit.
    """
    settings, teacher = teachers.settings, run.fetch(teacher)
    if not mesh.is_writer():
        return
    suffix = selected.TIMM if teachers.saved.layout else selected.NPZ
    path = selected.teacher_path(run.workdir, name, suffix)
    if not tuning_of(settings).mergeable:
        logging.info(
            "%s is not written, because a plain ViT cannot have the adapters of %s.",
            path,
            stages.title(teachers.stage),
        )
        return
    unpruned = teachers.model.clone(pruned_mlp=0, pruned_attention=0)
    image_size = provenance.preprocessing_of(run).image_size
    plain = folding.fold(
        teacher["params"],
        mlp_weight=settings.mlp_weight,
        attention_weight=settings.attention_weight,
        residual=settings.residual,
        pruned_mlp=settings.pruned_mlp,
        pruned_attention=settings.pruned_attention,
        unpruned=augreg.names_and_shapes(unpruned, image_size),
    )
    if teachers.saved.layout:
        _write_timm(run, path, plain, teachers)
    else:
        augreg.save(path, plain, form=augreg.form_of(plain))


def _write_timm(
    run: context.Run, path: pathlib.Path, params: Params, teachers: finetune.Teachers
) -> None:
    """Writes a teacher under timm's parameter names, with other properties as metadata."""
    steps, model = provenance.preprocessing_of(run), teachers.model
    grid = steps.image_size // model.size.pixels if model.positions == "sincos2d" else 0
    timm.save(
        path,
        timm_names.to_timm(augreg.flatten(params), grid=grid, layout=teachers.saved.layout),
        {
            "model": f"ViT {dict(model.size._asdict())}",
            **recorded.texts(recorded.of_model(model, teachers.saved.architecture)),
            "image_size": str(steps.image_size),
            "image_range": preprocessing.RANGE,
            "preprocessing": json.dumps(steps.record()),
            "classes": json.dumps(run.dataset.classes),
        },
    )
