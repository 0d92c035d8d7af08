"""Comparison of two models on the same test images, and a compact text form of predictions.

Two models evaluated on the same images make mistakes on the same hard ones, so the standard error
of their difference is smaller than the errors of their accuracies suggest. It is computed from the
images on which they differ.

Sources: McNemar 1947, https://doi.org/10.1007/BF02295996; Agresti, Categorical Data Analysis,
section 11.1 (the standard error of paired proportions).
"""

import base64
import math
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from remem_jax.data import registry

_BIT = "bit"
_TYPES = {_BIT: "u1", "uint8": "u1", "uint16": "<u2", "uint32": "<u4"}  # Types before compression.

Correct = Bool[np.ndarray, "... _"]  # (image,) or (model, image)


class Difference(NamedTuple):
    """Difference of two models' metrics, with its uncertainty.

    Attributes:
        difference: The first model's metric minus the second's, from -1 to 1.
        standard_error: Standard error of the difference, over other samples of test images (and of
            classes, if requested). The trained models are fixed.
        p_value: Two-sided p-value of such a difference between equally good models. NaN, like the
            error, if there is only one class to compare over.
    """

    difference: float
    standard_error: float
    p_value: float


def difference(
    correct_a: Correct,
    correct_b: Correct,
    labels: Int[np.ndarray, " _"],
    metric: str,
    *,
    over_classes: bool = False,
) -> Difference:
    """Compares two models, or two groups of models that differ by their seed, on the same images.

    The error is that of a bootstrap over images, in closed form: for the mean per class, each
    class keeps its number of images. The p-value is McNemar's exact one for the top-1 accuracies
    of two single models. Otherwise it is the normal approximation of McNemar's statistic, in which
    each image is weighted as in the metric. Over classes, whole classes are sampled:
    error and p-value are those of a paired t-test of the accuracies per class.

    Args:
        correct_a: Whether the first model classifies each image correctly; with a leading axis,
            whether each of several models does, of which the mean is taken.
        correct_b: The same for the second; the number of models may differ.
        labels: Class indices.
        metric: "top1" or "mean_per_class", over the classes that occur.
        over_classes: Whether the error includes the choice of classes.

    Raises:
        ValueError: If the metric is unknown, there are no images, or their numbers differ.
    """
    if metric not in (registry.TOP1, registry.MEAN_PER_CLASS):
        raise ValueError(f"There is no paired error of the metric {metric!r}.")
    if not labels.size or not correct_a.shape[-1] == correct_b.shape[-1] == labels.size:
        raise ValueError(
            f"Predictions for {correct_a.shape[-1]} and {correct_b.shape[-1]} images do not match "
            f"{labels.size} labels."
        )
    gaps = _mean(correct_a) - _mean(correct_b)
    if metric == registry.TOP1 and not over_classes:
        return _of_images(gaps, single=correct_a.ndim == correct_b.ndim == 1)
    of_class = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(of_class)
    means = np.bincount(of_class, gaps) / sizes
    if over_classes:
        return _over_classes(means)
    weights = (1 / (len(sizes) * sizes))[of_class]
    variances = _within(gaps, of_class, sizes, means)
    error = math.sqrt(np.sum(variances / sizes)) / len(sizes)
    return Difference(float(np.mean(means)), error, _mcnemar(gaps, weights))


def _mean(correct: Correct) -> Float[np.ndarray, " image"]:
    """Returns the share of the models that classify each image correctly."""
    return correct.reshape(-1, correct.shape[-1]).mean(axis=0, dtype=np.float64)


def _of_images(gaps: Float[np.ndarray, " image"], *, single: bool) -> Difference:
    images = len(gaps)
    error = math.sqrt(np.var(gaps) / images)
    if single:
        better, worse = int(np.sum(gaps > 0)), int(np.sum(gaps < 0))
        p_value = _sign_test(better, worse)
    else:
        p_value = _mcnemar(gaps, np.full(images, 1 / images))
    return Difference(float(np.mean(gaps)), error, p_value)


def _sign_test(better: int, worse: int) -> float:
    """Returns the exact p-value, if each image that differs is as likely to be better as worse."""
    return min(1.0, 2 * float(special.bdtr(min(better, worse), better + worse, 0.5)))


def _mcnemar(gaps: Float[np.ndarray, " image"], weights: Float[np.ndarray, " image"]) -> float:
    """Returns the p-value of McNemar's statistic, without a continuity correction.

    If the models are equally good, each gap has either sign with the same probability.
    """
    deviation = math.sqrt(np.sum((weights * gaps) ** 2))
    if not deviation:
        return 1.0
    return float(2 * special.ndtr(-abs(np.sum(weights * gaps)) / deviation))


def _within(
    gaps: Float[np.ndarray, " image"],
    of_class: Int[np.ndarray, " image"],
    sizes: Int[np.ndarray, " classes"],
    means: Float[np.ndarray, " classes"],
) -> Float[np.ndarray, " classes"]:
    """Returns the variance of the gaps in each class; for one-image classes, the mean variance."""
    squares = np.bincount(of_class, (gaps - means[of_class]) ** 2)
    several = sizes > 1
    if not several.any():
        return np.full(len(sizes), np.var(gaps))
    variances = squares / np.maximum(sizes - 1, 1)
    return np.where(several, variances, variances[several].mean())


def _over_classes(means: Float[np.ndarray, " classes"]) -> Difference:
    mean, classes = float(np.mean(means)), len(means)
    if classes < 2:
        return Difference(mean, math.nan, math.nan)
    error = float(np.std(means, ddof=1)) / math.sqrt(classes)
    if not error:
        return Difference(mean, 0.0, 0.0 if mean else 1.0)
    return Difference(mean, error, float(2 * special.stdtr(classes - 1, -abs(mean) / error)))


def pack(values: Bool[np.ndarray, " image"] | Int[np.ndarray, " image"]) -> str:
    """Writes one value for each image as a short line of ASCII, the same on every machine.

    Args:
        values: Whether each image is classified correctly, or its class, in order.

    Returns:
        "TYPE:NUMBER:BASE64" of the compressed values; `unpack` reads it.
    """
    if values.dtype == bool:
        kind, content = _BIT, np.packbits(values)
    else:
        kind = np.min_scalar_type(int(values.max(initial=0))).name
        content = values.astype(_TYPES[kind])
    encoded = base64.b64encode(zlib.compress(content.tobytes(), 9)).decode()
    return f"{kind}:{len(values)}:{encoded}"


def unpack(text: str) -> Bool[np.ndarray, " image"] | Int[np.ndarray, " image"]:
    """Reads the text of `pack`: bools, or classes as int64.

    Raises:
        ValueError: If the text is not one of `pack`, or is damaged.
    """
    try:
        kind, number, encoded = text.split(":")
        content = zlib.decompress(base64.b64decode(encoded, validate=True))
        values = np.frombuffer(content, _TYPES[kind])
        if kind == _BIT and 0 <= 8 * len(values) - int(number) < 8:
            return np.unpackbits(values, count=int(number)).astype(bool)
        if kind != _BIT and len(values) == int(number):
            return values.astype(np.int64)
    except (KeyError, ValueError, zlib.error):
        pass
    raise ValueError(f"This is not a list of values of images: {text[:40]!r}.")
