"""Finds the test images that a run also trains or selects on."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Int, UInt64

from remem_jax.data.inspection import duplicates, thumbnails
from remem_jax.data.inspection.thumbnails import Thumbnails
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Source, Subset
from remem_jax.data.splitting import Part

_MOST = 2  # Images that a test image is compared with by their hashes, the most alike.


class Contents(NamedTuple):
    """What the images of a split are recognised by.

    Attributes:
        numbers: See `ScanResult.numbers`.
        thumbnails: See `thumbnails`.
        read: Reads an image; see `duplicates.Read`.
    """

    numbers: UInt64[np.ndarray, " image"]
    thumbnails: Thumbnails
    read: Callable[[int], bytes | np.ndarray]


class Repeated(NamedTuple):
    """Test images with a duplicate in another split, and the duplicate that is most alike.

    Attributes:
        tests: Indices of the test images, increasing.
        splits: Name of the split of each one's duplicate.
        others: Index of the duplicate in its split.
        same_file: Whether the two are the same file; otherwise they are nearly the same picture.
    """

    tests: Int[np.ndarray, " repeated"]
    splits: tuple[str, ...]
    others: Int[np.ndarray, " repeated"]
    same_file: Bool[np.ndarray, " repeated"]


def of_parts(
    source: Source, parts: Mapping[str, Part], splits: Mapping[str, Subset], threads: int
) -> Repeated | None:
    """Returns the test images of a run that are also in train or validation; warns of them.

    Args:
        source: The data set.
        parts: The part of its scans that each split is.
        splits: Splits of the run.
        threads: Number of threads.

    Returns:
        The images; None for published data sets, whose splits are used as they are.
    """
    if source.published:
        return None
    contents = {}
    for name, subset in splits.items():
        scan, rows = parts[name].scan, parts[name].rows
        contents[name] = Contents(scan.numbers[rows], scan.thumbnails[rows], subset.image)
    others = {name: contents[name] for name in (TRAIN, VALIDATION) if name in contents}
    found = find(contents[TEST], others, threads=threads)
    if len(found.tests):
        logging.warning(
            "%s: %d of %d test images are also in train or validation, so that the test accuracy "
            "is too high; the report has the accuracy without them.",
            source.title,
            len(found.tests),
            len(splits[TEST].rows),
        )
    return found


def find(test: Contents, others: Mapping[str, Contents], *, threads: int) -> Repeated:
    """Finds the test images with a duplicate in other splits.

    A test image is compared with the two images that are most alike by their thumbnails. Only these
    few are read again.

    Args:
        test: The test images.
        others: The other splits.
        threads: Number of threads.
    """
    names = list(others)
    starts = np.cumsum([0, *(len(split.numbers) for split in others.values())])

    def places(indices: Int[np.ndarray, " image"]) -> tuple[Sequence[str], np.ndarray]:
        """Returns split and index in it of images of all other splits, one after another."""
        split = np.searchsorted(starts, indices, side="right") - 1
        return [names[i] for i in split], indices - starts[split]

    def read(index: int) -> bytes | np.ndarray:
        (name,), (row,) = places(np.asarray([index]))
        return others[name].read(int(row))

    same = _same(test.numbers, np.concatenate([each.numbers for each in others.values()]))
    images = np.concatenate([each.thumbnails for each in others.values()])
    (rest,) = np.nonzero(same < 0)
    pairs = thumbnails.alike(test.thumbnails[rest], images, most=_MOST, threads=threads)
    pairs = thumbnails.Pairs(rest[pairs.first], pairs.second)
    near = duplicates.are_close(
        pairs,
        duplicates.hashes(np.unique(pairs.first), test.read, threads=threads),
        duplicates.hashes(np.unique(pairs.second), read, threads=threads),
    )
    closest = same.copy()
    # The most alike of an image's pairs is written last.
    closest[pairs.first[near][::-1]] = pairs.second[near][::-1]
    (tests,) = np.nonzero(closest >= 0)
    splits, rows = places(closest[tests])
    return Repeated(tests, tuple(splits), rows, same[tests] >= 0)


def _same(
    digests: UInt64[np.ndarray, " image"], others: UInt64[np.ndarray, " other"]
) -> Int[np.ndarray, " image"]:
    """Returns the index of the first equal number among others for each number; -1 if none is."""
    known, first = np.unique(others, return_index=True)
    place = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    return np.where(known[place] == digests, first[place], -1)
