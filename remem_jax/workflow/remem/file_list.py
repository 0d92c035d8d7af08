"""Writes the list of all files of a run: split, class and predictions for each."""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from remem_jax import data
from remem_jax.data import sources
from remem_jax.storage import files, spreadsheets

PREDICTED = ("validation", "test")  # Splits with predictions of the selected students.
# Class indices by method and split; see `evaluate.evaluate`.
Predictions = Mapping[str, Mapping[str, np.ndarray]]


def write(path: pathlib.Path, dataset: data.Dataset, predictions: Predictions) -> None:
    """Writes the list as CSV; see `rows`.

    Characters that UTF-8 cannot encode are escaped, and no name is read as a formula
    (`spreadsheets.cell`).
    """
    with files.replacing(path) as file:
        for row in rows(dataset, predictions):
            file.write(spreadsheets.text([row]).encode(errors="backslashreplace"))


def rows(dataset: data.Dataset, predictions: Predictions) -> Iterator[tuple[str, ...]]:
    """Yields the header, a row for each image of each split, and one for each skipped image.

    Args:
        dataset: Data set of the run.
        predictions: Predictions of each method's selected student; any split may be missing.
    """
    yield ("file", "split", "label", *(f"predicted by {name}" for name in predictions), "skipped")
    for name, subset in _subsets(dataset):
        of_methods = [classes.get(name) for classes in predictions.values()]
        for i, (row, label) in enumerate(
            zip(subset.rows.tolist(), subset.labels.tolist(), strict=True)
        ):
            predicted = (
                "" if classes is None else dataset.classes[classes[i]] for classes in of_methods
            )
            yield (subset.split.name(row), name, dataset.classes[label], *predicted, "")
    for name, split, row in _skipped(dataset):
        label = "" if split.labels is None else dataset.classes[split.labels[row]]
        file = split.name(row)
        yield (file, name, label, *[""] * len(predictions), _reason(dataset, file))


def _subsets(dataset: data.Dataset) -> list[tuple[str, sources.Subset]]:
    names = [name for name in ("train", *PREDICTED) if name in dataset.splits]
    return [(name, dataset.splits[name]) for name in names]


def _skipped(dataset: data.Dataset) -> Iterator[tuple[str, sources.Split, int]]:
    """Yields the split and index of each image that no subset contains."""
    splits: list[sources.Split] = []
    for name, subset in _subsets(dataset):
        if any(subset.split is split for split in splits):
            continue  # Validation was held out of train.
        splits.append(subset.split)
        used = [other.rows for other in dataset.splits.values() if other.split is subset.split]
        for row in np.setdiff1d(np.arange(subset.split.examples), np.concatenate(used)):
            yield name, subset.split, int(row)


def _reason(dataset: data.Dataset, file: str) -> str:
    start = f"{file}: "
    reasons = (
        line.removeprefix(start) for line in dataset.corrupt_images if line.startswith(start)
    )
    return next(reasons, "not readable")
