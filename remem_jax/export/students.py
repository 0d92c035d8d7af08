"""A student to a file that has been checked: written under another name, compared, renamed."""

import pathlib
from typing import Any

import numpy as np

from remem_jax.export import checking, description, destinations, formats, predictors, runs
from remem_jax.export.checking import Limits
from remem_jax.export.description import Form


def export(
    student: runs.Student,
    form: Form,
    path: pathlib.Path,
    images: runs.Images,
    *,
    allowed: Limits,
    calibration: np.ndarray,
) -> dict[str, Any]:
    """Writes a student in a form, and beside it, in PATH.json, how it was checked.

    Args:
        student: The student.
        form: Format, input, batch, norms and precision.
        path: The file; a folder for "saved-tree". An earlier export there is replaced, and nothing
            else is.
        images: What it is checked on.
        allowed: How far it may differ from the student.
        calibration: uint8 images that set the ranges of int8; not looked at otherwise.

    Returns:
        The record that is in PATH.json.

    Raises:
        SettingError: If the form does not exist, something that is no export is there, the file
            cannot be written, or it does not say what the student says; nothing is then left of
            it, and what was there stays.
    """
    description.check(form)
    destinations.require_replaceable(path, folder=form.format in description.FOLDERS)
    described = student.described._replace(form=form)
    try:
        with destinations.workspace(path) as folder:
            unchecked = folder / f"unchecked{description.SUFFIXES[form.format]}"
            formats.write(student, described, unchecked, calibration)
            found = _checked(student, described, unchecked, images, allowed)
            return destinations.put(unchecked, path, found)
    except OSError as error:
        raise destinations.unwritable(path, error) from error


def _checked(
    student: runs.Student,
    described: description.Description,
    path: pathlib.Path,
    images: runs.Images,
    allowed: Limits,
) -> dict[str, Any]:
    texts = description.texts(described)
    export = predictors.open_export(path, described.form.format, texts)
    ours = predictors.of_student(student)
    found = checking.compare(export, ours, images)
    checking.require_equal(found, allowed, f"The {described.form.format} file")
    return checking.record(export, ours, found, allowed, images)
