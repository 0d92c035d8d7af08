"""A student to a file that has been checked: written under another name, compared, renamed."""

import pathlib
import shutil
from typing import Any

import numpy as np

from remem_jax.checks import SettingError
from remem_jax.export import checking, description, formats, predictors, runs
from remem_jax.export.checking import Limits
from remem_jax.export.description import Form
from remem_jax.storage import results


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
        path: The file; a folder for "saved-tree". What was there is replaced.
        images: What it is checked on.
        allowed: How far it may differ from the student.
        calibration: uint8 images that set the ranges of int8; not looked at otherwise.

    Returns:
        The record that is in PATH.json.

    Raises:
        SettingError: If the form does not exist, the file cannot be written, or it does not say
            what the student says; nothing is then left of it, and what was there stays.
    """
    description.check(form)
    described = student.described._replace(form=form)
    unchecked = path.with_name(f"{path.name}.unchecked")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        formats.write(student, described, unchecked, calibration)
        found = _checked(student, described, unchecked, images, allowed)
        _remove(predictors.record_path(path))  # Or a kill may leave it beside another file.
        _remove(path)
        unchecked.replace(path)
        results.write(predictors.record_path(path), found)
    except OSError as error:
        raise SettingError(
            f"{path} cannot be written ({error.strerror or error}): make room there, or set --out."
        ) from error
    finally:
        _remove(unchecked)
    return found


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


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
