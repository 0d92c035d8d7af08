"""Thumbnails of images, and the search for images whose thumbnails are alike.

Thumbnails are so small that they are made and kept for every image; `duplicates` compares the
perceptual hashes of the few images that are alike.
"""

import itertools
from concurrent import futures
from typing import NamedTuple

import numpy as np
import threadpoolctl
from jaxtyping import Bool, Float, Int, UInt8

from remem_jax.data.images import decoding

SIDE = 8
BYTES = 3 * SIDE**2
DECODED = 4 * SIDE  # Smallest side at which an image may be decoded for its thumbnail.

# Limits, chosen by looking at pairs of images; docs/own_data.md has the numbers. Other objects in
# the same pose, such as motorcycles on white, reach a correlation of 0.983; copies of photographs
# stay above 0.99.
LEAST_CORRELATION = 0.99  # Of the luma.
MOST_COLOUR = 16.0  # Mean absolute difference of the colours without luma, in grey levels of 255.
LEAST_CONTRAST = 2.0  # Standard deviation of the luma, below which it is mostly rounding errors.

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)  # Of ITU-R 601, as in Pillow.
_ROWS, _COLUMNS = 256, 1024  # Thumbnails that are compared in one product of matrices.

Thumbnails = UInt8[np.ndarray, "image 192"]
_Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # Rows, columns and correlations.


class Pairs(NamedTuple):
    """Pairs of images.

    Attributes:
        first: Index of the first image of each pair.
        second: Index of the second one.
    """

    first: Int[np.ndarray, " pair"]
    second: Int[np.ndarray, " pair"]


def of_pixels(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, " 192"]:
    """Returns the thumbnail of an image; its aspect ratio is ignored."""
    return decoding.resize(pixels, SIDE).ravel()


def alike_within(images: Thumbnails, *, most: int, threads: int) -> Pairs:
    """Finds pairs of images whose thumbnails are alike; each image with at most `most` before it.

    All pairs are compared, which takes half a minute for 100,000 images on two cores.

    Args:
        images: Thumbnails.
        most: Largest number of pairs of an image with earlier ones, the most alike.
        threads: Number of threads.

    Returns:
        Pairs whose first index is larger than the second.
    """
    return _alike(images, images, most=most, threads=threads, only_before=True)


def alike(
    images: Thumbnails, others: UInt8[np.ndarray, "other 192"], *, most: int, threads: int
) -> Pairs:
    """Finds pairs of an image and another one whose thumbnails are alike.

    Args:
        images: Thumbnails.
        others: Thumbnails to compare them with.
        most: Largest number of pairs of an image, the most alike.
        threads: Number of threads.

    Returns:
        Pairs of an index of `images` and one of `others`; those of an image follow each other, the
        most alike first.
    """
    return _alike(images, others, most=most, threads=threads, only_before=False)


def _alike(
    images: Thumbnails,
    others: UInt8[np.ndarray, "other 192"],
    *,
    most: int,
    threads: int,
    only_before: bool,
) -> Pairs:
    shapes = _standardised(images), _standardised(others)

    def of_rows(start: int) -> list[_Found]:
        rows = shapes[0][start : start + _ROWS]
        end = start + len(rows) if only_before else len(others)
        found = []
        for left in range(0, end, _COLUMNS):
            correlations = rows @ shapes[1][left : left + _COLUMNS].T
            if only_before and left + _COLUMNS > start:
                row, column = np.ogrid[: len(rows), left : left + correlations.shape[1]]
                correlations[column >= row + start] = 0
            if correlations.max() >= LEAST_CORRELATION:  # Rarely.
                row, column = _above(correlations, most)
                found.append((row + start, column + left, correlations[row, column]))
        return found

    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    # Threads of ours share the rows; those of the matrix product would wait for each other.
    with threadpoolctl.threadpool_limits(1), futures.ThreadPoolExecutor(threads) as pool:
        found = [none, *itertools.chain(*pool.map(of_rows, range(0, len(images), _ROWS)))]
    first, second, correlation = map(np.concatenate, zip(*found, strict=True))
    order = np.lexsort((second, -correlation, first))
    order = order[_have_same_colours(images[first[order]], others[second[order]])]
    first, second = first[order], second[order]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    return Pairs(first[rank < most], second[rank < most])


def _standardised(images: UInt8[np.ndarray, "image 192"]) -> Float[np.ndarray, "image 64"]:
    """Returns the luma, so that products are correlations; 0 for images without contrast."""
    luma = images.reshape(-1, SIDE**2, 3) @ _LUMA
    centred = luma - luma.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    has_contrast = norm >= LEAST_CONTRAST * SIDE  # The norm is SIDE standard deviations.
    return np.where(has_contrast, centred / np.maximum(norm, 1e-6), 0)


def _above(
    correlations: Float[np.ndarray, "row column"], most: int
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Returns rows and columns above the least correlation; at most `most` columns of each row."""
    row, column = np.nonzero(correlations >= LEAST_CORRELATION)
    if len(row) <= most * len(correlations) or correlations.shape[1] <= most:
        return row, column
    column = np.argpartition(-correlations, most - 1, axis=1)[:, :most].ravel()
    row = np.repeat(np.arange(len(correlations)), most)
    kept = correlations[row, column] >= LEAST_CORRELATION
    return row[kept], column[kept]


def _have_same_colours(
    first: UInt8[np.ndarray, "pair 192"], second: UInt8[np.ndarray, "pair 192"]
) -> Bool[np.ndarray, " pair"]:
    """Returns whether the images of each pair differ little in colour, apart from their luma."""
    differences = first.astype(np.float32) - second
    colours = differences.reshape(-1, SIDE**2, 3)
    colours = colours - (colours @ _LUMA)[..., None]
    return np.abs(colours).mean((1, 2)) <= MOST_COLOUR
