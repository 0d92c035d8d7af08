"""Compares an export with its student on real images, before it is moved to its path."""

import os
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from remem_jax.checks import SettingError
from remem_jax.export import description, destinations, predictors
from remem_jax.export.images import Images
from remem_jax.export.predictors import Predictor

LATENCY_BATCHES = (1, 32)
# `Limits` by precision. In float32, a network with logits of 10 has rounding errors above 1e-4; so
# has torch, compared with float64. Int8 has no limit on logits, because their error depends on the
# network.
LIMITS = {
    "float32": (1e-4, 0.005),
    "float16": (0.03, 0.02),
    "int8": (float("inf"), 0.05),
}
_SECONDS = 1.0  # Time to measure one latency.
_REPEATS = (5, 50)  # Minimum and maximum number of measurements.


class Limits(NamedTuple):
    """Largest allowed differences of an export.

    Attributes:
        difference: Difference of a logit, relative to the largest logit if that is above 1.
        disagreement: Share of the images with another predicted class.
    """

    difference: float
    disagreement: float


class Comparison(NamedTuple):
    """An export compared with its student on the same images.

    Attributes:
        images: Title and number of the images.
        difference: Largest absolute difference of a logit.
        largest: Largest absolute logit of the student.
        disagreement: Share of the images with another predicted class.
        accuracy: Top-1 accuracy of the export; None if the images have no labels.
        student_accuracy: Top-1 accuracy of the student; None if the images have no labels.
    """

    images: str
    difference: float
    largest: float
    disagreement: float
    accuracy: float | None
    student_accuracy: float | None


def limits(precision: str, difference: float | None, disagreement: float | None) -> Limits:
    """Returns the limits that the user has set, and those of the precision for the others."""
    default = LIMITS[precision]
    return Limits(
        default[0] if difference is None else difference,
        default[1] if disagreement is None else disagreement,
    )


def compare(export: Predictor, student: Predictor, images: Images) -> Comparison:
    """Compares the logits of an export and its student."""
    return compare_logits(export.predict(images.pixels), student.predict(images.pixels), images)


def compare_logits(
    logits: Float[np.ndarray, "example classes"],
    student_logits: Float[np.ndarray, "example classes"],
    images: Images,
) -> Comparison:
    """Compares logits of the same images."""
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


def require_close(comparison: Comparison, allowed: Limits, what: str, reason: str = "") -> None:
    """Raises `SettingError` if an export differs from its student by more than is allowed.

    Args:
        comparison: Of the export and its student.
        allowed: Largest allowed differences.
        what: Subject of the message.
        reason: Reason of the difference and what to do, as sentences; empty advises --precision.
    """
    limit = allowed.difference * max(1.0, comparison.largest)
    # Comparisons with NaN are False; an infinite limit must not let infinity pass.
    close = comparison.difference <= limit and np.isfinite(comparison.difference)
    if close and comparison.disagreement <= allowed.disagreement:
        return
    at_most = f"allowed: {limit:.3g}; " if np.isfinite(limit) else ""
    accuracies = ""
    if comparison.accuracy is not None and comparison.student_accuracy is not None:
        accuracies = (
            f" Its top-1 accuracy on them is {100 * comparison.accuracy:.2f} %, the model's "
            f"{100 * comparison.student_accuracy:.2f} %."
        )
    raise SettingError(
        f"{what} differs from the model that it was made from, and is not kept: a logit differs by "
        f"{comparison.difference:.3g} ({at_most}the largest is {comparison.largest:.3g}) and "
        f"{100 * comparison.disagreement:.2f} % of {comparison.images} have another predicted "
        f"class (allowed: {100 * allowed.disagreement:g} %).{accuracies} "
        f"{reason or 'Choose another --precision.'} --allowed-difference and "
        "--allowed-disagreement set what is allowed."
    )


def latencies(model: Predictor, pixels: np.ndarray) -> dict[str, float]:
    """Returns the median milliseconds of a batch on this machine, by batch size.

    An export with a fixed batch size is measured only with that.
    """
    fixed, by_batch = model.described.form.batch, {}
    for batch in (fixed,) if fixed else LATENCY_BATCHES:
        images = np.resize(pixels, (batch, *pixels.shape[1:]))
        if model.described.form.input == "float":
            images = predictors.to_model_range(images)
        by_batch[str(batch)] = _median_ms(model, images)
    return by_batch


def _median_ms(model: Predictor, images: np.ndarray) -> float:
    model.logits(images)  # Compiles.
    times: list[float] = []
    minimum, maximum = _REPEATS
    while len(times) < minimum or (len(times) < maximum and sum(times) < _SECONDS):
        start = time.perf_counter()
        model.logits(images)
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 3)


def check_record(comparison: Comparison, allowed: Limits, images: Images) -> dict[str, Any]:
    """Returns a comparison within the limits, and the skipped images, as JSON values."""
    return {
        "images": comparison.images,
        "skipped": list(images.skipped),
        "largest_difference": comparison.difference,
        "largest_logit": comparison.largest,
        "allowed_difference": allowed.difference,
        "agreement": 1 - comparison.disagreement,
        "allowed_disagreement": allowed.disagreement,
        "accuracy": comparison.accuracy,
        "student_accuracy": comparison.student_accuracy,
    }


def record(
    export: Predictor,
    student: Predictor,
    comparison: Comparison,
    allowed: Limits,
    images: Images,
) -> dict[str, Any]:
    """Returns the record that is written beside an export, as JSON values."""
    path = pathlib.Path(export.source)
    return {
        "metadata": description.texts(export.described),
        "student": student.source,
        "bytes": destinations.size(path),
        "student_bytes": destinations.size(pathlib.Path(student.source)),
        "check": check_record(comparison, allowed, images),
        "latency_ms": {
            "threads": len(os.sched_getaffinity(0)),
            "export": latencies(export, images.pixels),
            "student_in_jax": latencies(student, images.pixels),
        },
    }
