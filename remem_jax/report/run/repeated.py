"""Sentences on test images that a run also trained or selected on; not escaped yet."""

import numpy as np
from jaxtyping import Bool, Int

from remem_jax import paired
from remem_jax.data import registry
from remem_jax.report import tables
from remem_jax.report.run import comparisons
from remem_jax.report.tables import Results

_NAMED = 5
_FIXED_CAMERA = 0.5  # Share of repeated test images from which all images seem to look alike.


def remarks(results: Results) -> list[str]:
    """Returns sentences on repeated test images: how many, which, and the accuracy without them.

    Empty if there are none, or the run did not look for them.
    """
    found = results["data"].get("repeated")
    if not found or not found["images"]:
        return []
    accuracies = _accuracies(results, paired.unpack(found["test"]).astype(bool))
    return [_count(results), _names(results), *([accuracies] if accuracies else [])]


def _count(results: Results) -> str:
    """States how many test images are repeated, and how alike they are."""
    data = results["data"]
    found, images = data["repeated"], data["examples"]["test"]
    kinds = []
    near = found["images"] - found["same_file"]
    if found["same_file"]:
        kinds.append(f"{found['same_file']:,} as the same file")
    if near:
        kinds.append(f"{near:,} as nearly the same picture")
    sentence = (
        f"{found['images']:,} of {images:,} test images are also among the training or validation "
        f"images, {' and '.join(kinds)}."
    )
    if found["different_labels"]:
        verb = "has" if found["different_labels"] == 1 else "have"
        sentence += f" {found['different_labels']:,} of them {verb} another label there."
    if near > _FIXED_CAMERA * images:
        sentence += (
            " So many near duplicates may only mean that all images look alike, as those of a "
            "fixed camera."
        )
    return sentence


def _names(results: Results) -> str:
    found = results["data"]["repeated"]
    pairs = [f"{test} ({other} in {split})" for test, split, other in found["examples"][:_NAMED]]
    more = found["images"] - len(pairs)
    return f"These are {', '.join(pairs)}{f' and {more:,} more' if more else ''}."


def _accuracies(results: Results, is_repeated: Bool[np.ndarray, " image"]) -> str:
    """States each selected model's metric with and without the repeated images."""
    metric, labels = results["data"]["metric"], results["data"].get("test_labels")
    models = comparisons.models(results)  # Empty if a run recorded no single images.
    if not models or is_repeated.all():
        return ""
    classes, rest = paired.unpack(labels), ~is_repeated
    parts = []
    for model in models:
        without = _metric(model.correct[..., rest], classes[rest], metric)
        with_them = _metric(model.correct, classes, metric)
        parts.append(
            f"{model.title} {tables.percent(without)} (with them {tables.percent(with_them)})"
        )
    title = tables.METRIC_TITLES[metric]
    return f"{title[0].upper()}{title[1:]} without them, in percent: {'; '.join(parts)}."


def _metric(
    correct: Bool[np.ndarray, "*students image"], labels: Int[np.ndarray, " image"], metric: str
) -> float:
    """Returns the metric of a model, or its mean over several."""
    shares = correct.reshape(-1, len(labels)).mean(axis=0)
    if metric == registry.TOP1:
        return float(shares.mean())
    of_class = np.unique(labels, return_inverse=True)[1]
    return float(np.mean(np.bincount(of_class, shares) / np.bincount(of_class)))
