"""Exports a student: writes a temporary file, compares it with the student, and renames it."""

import pathlib
from typing import Any

import numpy as np

from remem_jax.checks import require
from remem_jax.export import checking, description, destinations, formats, options, predictors, runs
from remem_jax.export.checking import Limits
from remem_jax.export.images import Images
from remem_jax.export.options import Form


def export(
    student: runs.Student,
    form: Form,
    path: pathlib.Path,
    images: Images,
    *,
    allowed: Limits,
    calibration: np.ndarray,
) -> dict[str, Any]:
    """Writes a student and, as PATH.json, the record of its check.

    Args:
        student: The student.
        form: Format, input, batch size, folding and precision.
        path: Path of the file, or folder for "saved-tree". Replaces only an earlier export.
        images: Images to compare the export and the student on.
        allowed: Largest allowed differences.
        calibration: uint8 images that set the ranges of int8; not used otherwise.

    Returns:
        The record in PATH.json.

    Raises:
        SettingError: If the student cannot have the form, the path exists and is not an export,
            the file cannot be written, or its outputs differ too much; the new file is then
            removed, and the old one stays.
    """
    options.check(form)
    require(
        not form.fold or "batch_stats" in student.variables,
        f"--fold folds BatchNorm layers, and {student.described.model} has none: leave out --fold.",
    )
    destinations.require_replaceable(path, folder=form.format in options.FOLDERS)
    described = student.described._replace(form=form)
    try:
        with destinations.workspace(path) as folder:
            unchecked = folder / f"unchecked{options.SUFFIXES[form.format]}"
            formats.write(student, described, unchecked, calibration)
            record = _check(student, described, unchecked, images, allowed)
            return destinations.put(unchecked, path, record)
    except OSError as error:
        raise destinations.unwritable(path, error) from error


def _check(
    student: runs.Student,
    described: description.Description,
    path: pathlib.Path,
    images: Images,
    allowed: Limits,
) -> dict[str, Any]:
    texts = description.texts(described)
    export = predictors.open_export(path, described.form.format, texts)
    in_jax = predictors.of_student(student)
    comparison = checking.compare(export, in_jax, images)
    checking.require_close(comparison, allowed, f"The {described.form.format} file")
    return checking.record(export, in_jax, comparison, allowed, images)
