"""The list of all files of a run: where each went, its class, and what the students said of it."""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from remem_jax import data
from remem_jax.data import sources
from remem_jax.storage import files, spreadsheets

PREDICTED = ("validation", "test")  # Splits that selected students are asked about.
# By method and split, the index of a class for each example; see `evaluate.evaluate`.
Predictions = Mapping[str, Mapping[str, np.ndarray]]


def write(path: pathlib.Path, dataset: data.Dataset, predictions: Predictions) -> None:
    """Writes the list as CSV; see `rows`.

    What UTF-8 cannot encode in a name is written as an escape, and no name is a formula
    (`spreadsheets.cell`).
    """
    with files.replacing(path) as file:
        for row in rows(dataset, predictions):
            file.write(spreadsheets.text([row]).encode(errors="backslashreplace"))


def rows(dataset: data.Dataset, predictions: Predictions) -> Iterator[tuple[str, ...]]:
    """The head of the list, a row for each image of each split, and one for each skipped image.

    Args:
        dataset: Of the run.
        predictions: Of the selected student of each method; may lack any split.
    """
    yield ("file", "split", "label", *(f"predicted by {name}" for name in predictions), "skipped")
    for name, part in _parts(dataset):
        found = [own.get(name) for own in predictions.values()]
        for i, (row, label) in enumerate(
            zip(part.rows.tolist(), part.labels.tolist(), strict=True)
        ):
            said = ("" if one is None else dataset.classes[one[i]] for one in found)
            yield (part.split.name(row), name, dataset.classes[label], *said, "")
    for name, split, row in _skipped(dataset):
        label = "" if split.labels is None else dataset.classes[split.labels[row]]
        file = split.name(row)
        yield (file, name, label, *[""] * len(predictions), _reason(dataset, file))


def _parts(dataset: data.Dataset) -> list[tuple[str, sources.Subset]]:
    return [(name, dataset.splits[name]) for name in ("train", *PREDICTED)]


def _skipped(dataset: data.Dataset) -> Iterator[tuple[str, sources.Split, int]]:
    """Split and number of each image that no part of the data set has."""
    seen: list[sources.Split] = []
    for name, part in _parts(dataset):
        if any(part.split is split for split in seen):
            continue  # Validation that was held out of train.
        seen.append(part.split)
        used = [one.rows for one in dataset.splits.values() if one.split is part.split]
        for row in np.setdiff1d(np.arange(part.split.examples), np.concatenate(used)):
            yield name, part.split, int(row)


def _reason(dataset: data.Dataset, file: str) -> str:
    start = f"{file}: "
    reasons = (
        line.removeprefix(start) for line in dataset.corrupt_images if line.startswith(start)
    )
    return next(reasons, "not readable")
