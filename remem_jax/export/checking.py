"""Checks an export against the student itself, on real images, before it gets its name."""

import os
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from remem_jax.checks import SettingError
from remem_jax.export import description, destinations, predictors
from remem_jax.export.predictors import Predictor
from remem_jax.export.runs import Images

LATENCY_BATCHES = (1, 32)
# See `Limits`, by precision. Float32 rounds by more than 1e-4 in a network with logits of 10: torch
# does, beside itself in float64. Int8 has no bound on logits: what they lose is up to the network.
LIMITS = {
    "float32": (1e-4, 0.005),
    "float16": (0.03, 0.02),
    "int8": (float("inf"), 0.05),
}
_SECONDS = 1.0  # Of measuring one latency.
_REPEATS = (5, 50)  # At least, and at most.


class Limits(NamedTuple):
    """What an export may differ by.

    Attributes:
        difference: Of a logit, at most; where the largest logit is above 1, as a share of it.
        disagreement: Share of the images that are put into another class, at most.
    """

    difference: float
    disagreement: float


class Comparison(NamedTuple):
    """An export beside its student, on the same images.

    Attributes:
        images: What they are, and how many.
        difference: Largest of a logit.
        largest: The student's largest logit, whatever its sign.
        disagreement: Share of the images that are put into another class.
        accuracy: Of the export, top-1; None where the images have no labels.
        student_accuracy: The same of the student.
    """

    images: str
    difference: float
    largest: float
    disagreement: float
    accuracy: float | None
    student_accuracy: float | None


def limits(precision: str, difference: float | None, disagreement: float | None) -> Limits:
    """The limits of a precision, where the user has not set others."""
    usual = LIMITS[precision]
    return Limits(
        usual[0] if difference is None else difference,
        usual[1] if disagreement is None else disagreement,
    )


def compare(export: Predictor, student: Predictor, images: Images) -> Comparison:
    """Looks at the same images with both."""
    return compared(export.predict(images.pixels), student.predict(images.pixels), images)


def compared(
    logits: Float[np.ndarray, "example classes"],
    student_logits: Float[np.ndarray, "example classes"],
    images: Images,
) -> Comparison:
    """What an export says, beside what its student says of the same images."""
    classes, student_classes = logits.argmax(-1), student_logits.argmax(-1)
    labels = images.labels
    return Comparison(
        f"{images.title}: {len(logits)} images",
        float(np.max(np.abs(logits - student_logits))),
        float(np.max(np.abs(student_logits))),
        float(np.mean(classes != student_classes)),
        None if labels is None else float(np.mean(classes == labels)),
        None if labels is None else float(np.mean(student_classes == labels)),
    )


def require_equal(found: Comparison, allowed: Limits, what: str) -> None:
    """Raises `SettingError` unless the two differ by no more than is allowed."""
    limit = allowed.difference * max(1.0, found.largest)
    # What is no number is above no limit, and within none.
    close = found.difference <= limit and np.isfinite(found.difference)
    if close and found.disagreement <= allowed.disagreement:
        return
    raise SettingError(
        f"{what} does not say what the student says, and is not kept: a logit differs by "
        f"{found.difference:.3g} (allowed: {limit:.3g}; the largest is {found.largest:.3g}) and "
        f"{100 * found.disagreement:.2f} % of {found.images} get another class (allowed: "
        f"{100 * allowed.disagreement:g} %). Another --precision is closer; --allowed-difference "
        "and --allowed-disagreement let it pass."
    )


def latencies(model: Predictor, pixels: np.ndarray) -> dict[str, float]:
    """Median milliseconds of batches of images on this machine, by the size of the batch.

    An export of a fixed batch has that size alone.
    """
    fixed, found = model.described.form.batch, {}
    for batch in (fixed,) if fixed else LATENCY_BATCHES:
        images = np.resize(pixels, (batch, *pixels.shape[1:]))
        if model.described.form.input == "float":
            images = predictors.to_model_range(images)
        found[str(batch)] = _median_ms(model, images)
    return found


def _median_ms(model: Predictor, images: np.ndarray) -> float:
    model.logits(images)  # Compiles.
    times: list[float] = []
    least, most = _REPEATS
    while len(times) < least or (len(times) < most and sum(times) < _SECONDS):
        start = time.perf_counter()
        model.logits(images)
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 3)


def check_record(found: Comparison, allowed: Limits, images: Images) -> dict[str, Any]:
    """A comparison that has passed, and what of the images was left out, as JSON values."""
    return {
        "images": found.images,
        "skipped": list(images.skipped),
        "largest_difference": found.difference,
        "largest_logit": found.largest,
        "allowed_difference": allowed.difference,
        "agreement": 1 - found.disagreement,
        "allowed_disagreement": allowed.disagreement,
        "accuracy": found.accuracy,
        "student_accuracy": found.student_accuracy,
    }


def record(
    export: Predictor, student: Predictor, found: Comparison, allowed: Limits, images: Images
) -> dict[str, Any]:
    """What is written beside an export that has passed: JSON values."""
    path = pathlib.Path(export.source)
    return {
        "metadata": description.texts(export.described),
        "student": student.source,
        "bytes": destinations.size(path),
        "student_bytes": destinations.size(pathlib.Path(student.source)),
        "check": check_record(found, allowed, images),
        "latency_ms": {
            "threads": len(os.sched_getaffinity(0)),
            "export": latencies(export, images.pixels),
            "student_in_jax": latencies(student, images.pixels),
        },
    }
