"""A run's teacher, a plain ViT by then, under the names of other codes; read back and compared."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

import remem_jax
from remem_jax import mesh, models
from remem_jax.checks import one_of, require
from remem_jax.data.images import preprocessing
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import checking, destinations, predictors, runs
from remem_jax.export.checking import Limits
from remem_jax.models import vit
from remem_jax.storage import results
from remem_jax.weights import augreg, timm

FORMATS = {"augreg": ".npz", "big_vision": ".npz", "timm": ".safetensors"}
_AT_ONCE = 32


class Teacher(NamedTuple):
    """The selected teacher of a run.

    Attributes:
        method: Of the run.
        checkpoint: A plain ViT: re-weighting is folded in, LoRA merged.
        classes: Names of the classes, in the order of the logits.
        gelu: Which one it was trained with: "tanh", "erf", or empty for the checkpoint's.
        preprocessing: How an image becomes what it sees.
        identity: Hash of the run's file that it was read from.
        run: Key of the run's identity (`storage.identity`); empty of older runs.
    """

    method: str
    checkpoint: augreg.Checkpoint
    classes: tuple[str, ...]
    gelu: str
    preprocessing: Preprocessing
    identity: str
    run: str


def open_teacher(run: pathlib.Path, *, method: str = "") -> Teacher:
    """The selected teacher of a finished run.

    Args:
        run: The run's folder.
        method: One that has a teacher; empty is the one whose student is best on validation.

    Raises:
        SettingError: If there is no such run or teacher, or the run is not finished.
    """
    mesh.require_devices()
    found = runs.read_results(run)
    taught = [row for row in found["methods"] if row["teacher"]]
    require(len(taught) > 0, f"No method of {run} has a teacher; set --method.")
    rows = found | {"methods": found["methods"] if method else taught}
    row = runs.chosen(rows, run, method)
    name = row["method"]
    require(row["teacher"] is not None, f"{name} of {run} has no teacher; set --method.")
    path = run / "selected" / f"{name}_teacher.npz"
    require(
        path.is_file(),
        f"There is no {path}: a teacher with adapters is no plain ViT, and is not written.",
    )
    checkpoint = augreg.read(path)
    return Teacher(
        name,
        checkpoint,
        tuple(found["data"]["class_names"]),
        found["config"]["teacher"]["gelu"],
        Preprocessing(checkpoint.image_size, preprocessing.stored_size(found)),
        results.digest(path),
        runs.key_of(found),
    )


def export(
    teacher: Teacher, form: str, path: pathlib.Path, images: runs.Images, *, allowed: Limits
) -> dict[str, Any]:
    """Writes a teacher under the names of a code, and beside it, in PATH.json, how it was checked.

    Args:
        teacher: The teacher.
        form: One of `FORMATS`: "augreg" (vit_jax), "big_vision", "timm".
        path: The file. An earlier export there is replaced, and nothing else is.
        images: What it is checked on.
        allowed: How far it may differ.

    Returns:
        The record that is in PATH.json.

    Raises:
        SettingError: If that code has no such ViT, something that is no export is there, the file
            cannot be written, or it does not say what the teacher says; nothing is then left of
            it, and what was there stays.
    """
    one_of("--format", form, FORMATS)
    destinations.require_replaceable(path, folder=False)
    try:
        with destinations.workspace(path) as folder:
            # The suffix tells the formats apart where a file is read.
            unchecked = folder / f"unchecked{FORMATS[form]}"
            record = _checked(teacher, form, unchecked, images, allowed)
            return destinations.put(unchecked, path, record)
    except OSError as error:
        raise destinations.unwritable(path, error) from error


def _checked(
    teacher: Teacher, form: str, path: pathlib.Path, images: runs.Images, allowed: Limits
) -> dict[str, Any]:
    """Writes a teacher and compares it; its record."""
    checkpoint = teacher.checkpoint
    _write(checkpoint, form, path, _metadata(teacher))
    read = augreg.read(path, heads=checkpoint.size.heads)
    found = checking.compared(_logits(read, images), _logits(checkpoint, images), images)
    checking.require_equal(found, allowed, f"The {form} file")
    return {
        "metadata": _metadata(teacher),
        "bytes": destinations.size(path),
        "check": checking.check_record(found, allowed, images),
    }


def _metadata(teacher: Teacher) -> dict[str, str]:
    checkpoint = teacher.checkpoint
    return {
        "model": f"ViT {dict(checkpoint.size._asdict())}",
        "pool": str(checkpoint.options["pool"]),
        "gelu": teacher.gelu or "of the checkpoint that it began as; timm's own is erf",
        "image_size": str(checkpoint.image_size),
        "image_range": preprocessing.RANGE,
        "resize": teacher.preprocessing.text(),
        "preprocessing": json.dumps(teacher.preprocessing.record()),
        "classes": json.dumps(teacher.classes),
        "method": teacher.method,
        "identity": teacher.identity,
        "run": teacher.run,
        "producer": f"remem_jax {remem_jax.__version__}",
    }


def _write(
    checkpoint: augreg.Checkpoint, form: str, path: pathlib.Path, metadata: dict[str, str]
) -> None:
    if form == "timm":
        grid = checkpoint.image_size // checkpoint.size.pixels
        timm.save(path, timm.to_timm(checkpoint.arrays, grid=grid), metadata)
    else:
        names = "vit_jax" if form == "augreg" else form
        augreg.save(path, checkpoint.arrays, form=names)


def _logits(checkpoint: augreg.Checkpoint, images: runs.Images) -> np.ndarray:
    """Of a ViT with the GELU by tanh, whatever its code has: it is the arrays that are compared."""
    options = dict(checkpoint.options) | {"exact_gelu": False}
    model = vit.make(variant=checkpoint.size, classes=checkpoint.classes, **options)
    variables = augreg.into(checkpoint, model, image_size=None, reset_head=False)
    apply = jax.jit(models.evaluation_apply(model))
    pixels = predictors.to_model_range(images.pixels)
    starts = range(0, len(pixels), _AT_ONCE)
    return np.concatenate([apply(variables, pixels[i : i + _AT_ONCE]) for i in starts])
