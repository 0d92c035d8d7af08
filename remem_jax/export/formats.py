"""Writes a student in any of the formats."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from remem_jax import models
from remem_jax.data.images import augment
from remem_jax.export import description, folding, options, predictors, runs
from remem_jax.export.description import Description
from remem_jax.models.operations import attention
from remem_jax.records import Apply, Variables
from remem_jax.storage import checkpoints, files
from remem_jax.weights import students

_PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    student: runs.Student, described: Description, path: pathlib.Path, calibration: np.ndarray
) -> None:
    """Writes a student atomically.

    Args:
        student: The student.
        described: Its description, with the form to write.
        path: Path of the file, or folder for "saved-tree".
        calibration: uint8 images that set the ranges of int8; not used for other precisions.

    Raises:
        SettingError: If the student cannot have this form, or the file cannot be written.
    """
    form = described.form
    if form.format == "onnx":
        _write_onnx(student, described, path, calibration)
    elif form.format == "stablehlo":
        _write_stablehlo(student, described, path)
    elif form.format == "safetensors":
        variables = _stored(student.variables, form.precision)
        students.save(path, variables, metadata=description.texts(described))
    else:
        checkpoints.save_tree(path, _stored(_variables(student, described), form.precision))


def _variables(student: runs.Student, described: Description) -> Variables:
    if not described.form.fold:
        return student.variables
    return folding.folded(student.model, student.variables)


def _stored(variables: Variables, precision: str) -> Variables:
    return jax.tree.map(lambda leaf: np.asarray(leaf, precision), variables)


def _computed(variables: Variables, described: Description) -> Variables:
    """Casts all kernels but the head's, and nothing else, to the precision of the computation."""
    dtype = np.float16 if described.form.precision == "float16" else np.float32
    head = models.STUDENTS[described.model].head

    def cast(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        is_kernel = name.endswith("/kernel") and leaf.ndim > 1 and name not in head
        return np.asarray(leaf, dtype if is_kernel else None)

    return jax.tree.map_with_path(cast, variables)


def _apply(described: Description, *, whole_norms: bool = False) -> Apply:
    """Returns a function of variables and images (as the export takes them) to logits."""
    precision = "float16" if described.form.precision == "float16" else "float32"
    apply = folding.make_apply(runs.make_model(described, dtype=precision), whole_norms=whole_norms)
    if described.form.input == "float":
        return apply
    return lambda variables, images: apply(variables, augment.to_model_range(images))


def _input_type(described: Description) -> str:
    return "uint8" if described.form.input == "uint8" else "float32"


def _write_stablehlo(student: runs.Student, described: Description, path: pathlib.Path) -> None:
    form, variables = described.form, _variables(student, described)
    batch: Any = form.batch
    if not batch:
        (batch,) = jax_export.symbolic_shape("batch")
    shape = (batch, described.image_size, described.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.dtype(_input_type(described)))
    variables = jax.tree.map(jnp.asarray, _computed(variables, described))
    apply = _apply(described)  # Each layer selects its implementation by platform.
    run = jax.jit(lambda images: apply(variables, images))
    with attention.unfused():
        exported = jax_export.export(run, platforms=_PLATFORMS)(images)
    with files.replacing(path) as file:
        file.write(exported.serialize())


def _write_onnx(
    student: runs.Student, described: Description, path: pathlib.Path, calibration: np.ndarray
) -> None:
    predictors.runtime()  # Raises an error that names the packages to install.
    from remem_jax.export import graph, quantisation

    form = described.form
    images = graph.Input(described.image_size, _input_type(described), form.batch)
    apply = _apply(described, whole_norms=True)
    model = graph.of_apply(apply, _variables(student, described), images)
    if form.precision == "int8":
        ranges = predictors.to_model_range(calibration) if form.input == "float" else calibration
        model = quantisation.quantised(model, ranges, batch=form.batch or options.BATCH_SIZE)
    for name, text in description.texts(described).items():
        model.metadata_props.add(key=name, value=text)
    with files.replacing(path) as file:
        file.write(model.SerializeToString())
