"""Measures of teachers besides their accuracy and information: calibration and flatness."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from remem_jax.analysis import calibration, flatness
from remem_jax.records import Variables
from remem_jax.storage import results
from remem_jax.workflow import context

VALIDATION = "validation"


def calibrated(run: context.Run, logits: np.ndarray) -> dict[str, Any]:
    """Finds the temperature that calibrates a teacher on validation.

    Args:
        run: The run.
        logits: The teacher's logits for the validation images.

    Returns:
        The "temperature", and the calibration on "validation" `before_and_after`.
    """
    labels = run.dataset.splits[VALIDATION].labels
    found = calibration.temperature(logits, labels)
    return {"temperature": found, VALIDATION: before_and_after(logits, labels, found)}


def before_and_after(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, dict[str, float]]:
    """Returns the "nll" and "ece" of a teacher "before" and "after" division by a temperature."""
    return {
        name: calibration.measure(logits, labels, temperature=value)._asdict()
        for name, value in (("before", 1.0), ("after", temperature))
    }


def flatness_of(
    run: context.Run, measure: context.Measure, variables: Variables, folder: pathlib.Path
) -> dict[str, Any]:
    """Measures the loss of a teacher around its parameters, on training images as they are.

    Args:
        run: The run.
        measure: Evaluates the teacher.
        variables: Variables of the teacher.
        folder: Folder of its checkpoint, where the result is kept.

    Returns:
        The "radius", "loss", "worst" and "gradient_norm" (see `flatness.measure`), and "sharpness",
        the worst loss minus the loss.
    """
    settings = run.config.flatness
    path = folder / f"flatness_{settings.radius:g}_{settings.examples}.json"
    kept = results.read_for_all(path)
    if kept is not None:
        return kept
    size, train = settings.batch_size, len(run.dataset.splits["train"].rows)
    images = min(settings.examples or train, train)

    def batches() -> Iterator[flatness.Examples]:
        numbered = enumerate(run.loader.evaluation("train", size))
        for number, batch in itertools.islice(numbered, -(-images // size)):
            counted = batch.mask & (number * size + jnp.arange(size) < images)
            yield measure.transform(batch.image), batch.label, counted.astype(jnp.float32)

    found = flatness.measure(measure.apply, variables["params"], batches, radius=settings.radius)
    record = {
        "radius": settings.radius,
        **found._asdict(),
        "sharpness": found.worst - found.loss,
    }
    results.write_for_all(path, record)
    return record
