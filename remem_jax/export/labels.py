"""Compares the labels of a run's images with the predictions of its best model."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from remem_jax import display, models
from remem_jax.data.inspection import labels
from remem_jax.data.inspection.labels import Check
from remem_jax.export import images, options, runs, teachers
from remem_jax.methods import METHODS
from remem_jax.records import DataLoader
from remem_jax.storage import selected
from remem_jax.weights import augreg

_Logits = Callable[[Float[Array, "image height width 3"]], Float[Array, "image klass"]]


def check(run: pathlib.Path, *, path: str = "") -> Check:
    """Compares the labels of a run's images with the predictions of its teacher.

    It is the teacher of the method whose student is best on validation. If the run has none, or
    none in a file, it is that student.

    Args:
        run: Folder of a finished run.
        path: Where the images are now; empty if they are where the run read them.

    Raises:
        SettingError: If there is no such run, it is not finished, or its images are missing or have
            changed.
    """
    model, logits = _teacher(run) or _student(run)
    dataset, loader = images.load(run, path=path, otherwise="give the folder where they are now")
    examples = sum(len(subset.rows) for subset in dataset.splits.values())
    with display.stage(f"Predictions of {model}", examples, unit="image") as stage:
        done, probabilities = 0, {}
        for split, subset in dataset.splits.items():
            probabilities[split] = _probabilities(
                loader, split, logits, lambda count, done=done: stage.advance(done + count)
            )
            done += len(subset.rows)
    return labels.check(model, dataset.splits, probabilities)


def _probabilities(
    loader: DataLoader, split: str, logits: _Logits, advance: Callable[[int], object]
) -> Float[np.ndarray, "image klass"]:
    """Returns the probabilities of the images of a split."""
    transform = jax.jit(loader.evaluation_transform)
    found, count = [], 0
    for batch in loader.evaluation(split, options.BATCH_SIZE):
        outputs = logits(transform(jax.random.key(0), batch.image))
        found.append(np.asarray(outputs, np.float64)[np.asarray(batch.mask)])
        count += len(found[-1])
        advance(count)
    return special.softmax(np.concatenate(found), axis=-1)


def _teacher(run: pathlib.Path) -> tuple[str, _Logits] | None:
    """Opens the teacher of a run; None if there is no file of one."""
    record = runs.read_results(run)
    rows = [row for row in record["methods"] if row["teacher"]]
    if not rows:
        return None
    method = runs.method_row(record | {"methods": rows}, run, "")["method"]
    if not selected.teacher(run, method).is_file():  # It has adapters.
        return None
    teacher = teachers.open_teacher(run, method=method)
    checkpoint = teacher.checkpoint
    model = checkpoint.make(classes=checkpoint.classes)
    variables = augreg.into(checkpoint, model, image_size=None, reset_head=False)
    return f"the teacher ({_title(method)})", _compiled(model, variables)


def _student(run: pathlib.Path) -> tuple[str, _Logits]:
    """Opens the student of a run that is best on validation."""
    student = runs.open_student(run)
    title = f"the student ({_title(student.described.method)})"
    return title, _compiled(student.model, student.variables)


def _compiled(model: Any, variables: Any) -> _Logits:
    placed, apply = jax.device_put(variables), jax.jit(models.evaluation_apply(model))
    return lambda pixels: apply(placed, pixels)


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method
