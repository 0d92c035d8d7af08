"""Classifies image files with any predictor, batch by batch."""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import NamedTuple, TypeVar

import numpy as np

from remem_jax import display
from remem_jax.checks import SettingError, printable
from remem_jax.export import images, predictions
from remem_jax.export.predictions import Predictions
from remem_jax.export.predictors import Predictor

T = TypeVar("T")
R = TypeVar("R")


class _Image(NamedTuple):
    """An image file after an attempt to read it.

    Attributes:
        path: Path of the file.
        pixels: Preprocessed image, or the reason why it cannot be read.
        stamp: Result of `predictions.stamp`, taken before reading.
    """

    path: str
    pixels: np.ndarray | str
    stamp: list[int] | None


def predict(
    model: Predictor,
    paths: Sequence[pathlib.Path],
    *,
    top: int,
    batch_size: int,
    known: Mapping[str, predictions.Top] | None = None,
    keep: Callable[[Predictions], None] | None = None,
) -> Predictions:
    """Classifies images, preprocessed as for evaluation; meanwhile reads the next batch.

    Args:
        model: Predictor from `predictors.open_any`.
        paths: Image files. Files that cannot be read are listed and skipped.
        top: Number of likeliest classes for each image; at most all.
        batch_size: Batch size; an export with a fixed batch size uses its own.
        known: Earlier predictions of some of the files, which are not read again.
        keep: Called with the new predictions of each batch.
    """
    new, known = Predictions({}, {}), known or {}
    remaining = [path for path in paths if str(path) not in known]
    batch_size = model.described.form.batch or min(batch_size, max(len(remaining), 1))
    with display.stage("Classification", len(paths), len(known), "image") as stage:
        for batch in _batches(model, remaining, batch_size):
            predicted_batch = _classify(model, batch, top=top, batch_size=batch_size)
            if keep is not None:
                keep(predicted_batch)
            new.top.update(predicted_batch.top)
            new.failed.update(predicted_batch.failed)
            stage.advance(len(known) + len(new.top) + len(new.failed))
    predicted = {**known, **new.top}
    in_order = {str(path): predicted[str(path)] for path in paths if str(path) in predicted}
    return Predictions(in_order, new.failed)


def _classify(
    model: Predictor, batch: Sequence[_Image], *, top: int, batch_size: int
) -> Predictions:
    new = Predictions({}, {})
    new.stamps.update((image.path, image.stamp) for image in batch if image.stamp)
    new.failed.update(
        (image.path, image.pixels) for image in batch if isinstance(image.pixels, str)
    )
    pixels = {image.path: image.pixels for image in batch if not isinstance(image.pixels, str)}
    if pixels:
        logits = model.predict(np.stack(list(pixels.values())), batch_size=batch_size)
        new.top.update(zip(pixels, likeliest(logits, model.classes, top), strict=True))
    return new


def _batches(
    model: Predictor, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[list[_Image]]:
    """Returns batches of image files; threads read one batch ahead."""
    preprocessing = model.described.preprocessing

    def read(path: pathlib.Path) -> _Image:
        stamp = predictions.stamp(path)
        try:
            return _Image(str(path), images.read_image(path, preprocessing), stamp)
        except SettingError as error:
            return _Image(str(path), str(error).removeprefix(f"{printable(str(path))} "), stamp)

    return read_ahead(read, paths, batch_size)


def read_ahead(read: Callable[[T], R], items: Iterable[T], batch_size: int) -> Iterator[list[R]]:
    """Yields what a function returns for each item, in batches; threads work one batch ahead."""
    remaining = iter(items)
    with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ahead = pool.map(read, itertools.islice(remaining, batch_size))
        while batch := list(ahead):
            ahead = pool.map(read, itertools.islice(remaining, batch_size))
            yield batch


def likeliest(
    logits: np.ndarray, classes: tuple[str, ...], top: int
) -> Iterator[list[tuple[str, float]]]:
    """Yields the likeliest classes of each image; ties go to the lower index."""
    from scipy import special

    probabilities = special.softmax(logits.astype(np.float64), axis=-1)
    for row in probabilities:
        order = np.argsort(-row, kind="stable")[:top].tolist()
        yield [(classes[i], float(row[i])) for i in order]
