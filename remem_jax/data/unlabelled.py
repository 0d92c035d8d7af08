"""Chooses the unlabelled images that students learn from, once all images are scanned."""

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from remem_jax.checks import SettingError
from remem_jax.data import sources
from remem_jax.data.images import decoding
from remem_jax.data.scan import ScanResult


class Unlabelled(NamedTuple):
    """Images without labels that students with a teacher learn from.

    Attributes:
        subset: The images; their labels are `sources.NO_LABEL`.
        pixels: Resident images, of the shape of the training images; None if images are streamed.
        share: Share of them in a batch.
        known: Number of images that were left out because the data set has them too.
        repeated: Number of images that were left out because they repeat another.
        fingerprint: Hash of the images.
        skipped_files: See `sources.Source`.
    """

    subset: sources.Subset
    pixels: np.ndarray | None
    share: float
    known: int
    repeated: int
    fingerprint: str
    skipped_files: Mapping[str, int]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.subset.rows)


def choose(
    source: sources.Unlabelled, scan: ScanResult, labelled: Collection[ScanResult], *, train: int
) -> Unlabelled:
    """Leaves out images that the data set has too, in any split, and repeated ones.

    Two images are the same if they are stored as the same bytes. Students must not learn from
    images of test or validation, even without their labels; those of train are in every batch
    already.

    Args:
        source: The unlabelled images.
        scan: Result of their scan.
        labelled: Results of the scans of the labelled splits.
        train: Number of labelled training images.

    Raises:
        SettingError: If no image is left.
    """
    digests = scan.numbers
    is_known = np.isin(digests, np.concatenate([each.numbers for each in labelled]))
    is_first = np.zeros(len(digests), bool)
    is_first[np.unique(digests, return_index=True)[1]] = True
    rows = np.flatnonzero(is_first & ~is_known)
    known, repeated = int(is_known.sum()), int((~is_first & ~is_known).sum())
    if not len(rows):
        raise SettingError(
            "config.data.unlabelled has no image to learn from: of its "
            f"{source.split.examples:,}, {len(scan.corrupt):,} cannot be read, and {known:,} are "
            "in the data set already. Set another folder, or leave it empty."
        )
    if known or repeated:
        logging.info(
            "Of the unlabelled images, %d are left out because the data set has them too, and %d "
            "because they repeat others.",
            known,
            repeated,
        )
    pixels = scan.pixels
    if pixels is not None and len(rows) < len(pixels):
        pixels = pixels[rows]
    digest = hashlib.sha256(f"{sources.UNLABELLED} {scan.digest}".encode() + rows.tobytes())
    return Unlabelled(
        sources.Subset(source.split, scan.kept[rows], scan.labels[rows]),
        pixels,
        source.share(len(rows), train),
        known,
        repeated,
        digest.hexdigest()[:16],
        source.skipped_files,
    )


def stored_as(unlabelled: Unlabelled, shape: tuple[int, int] | None, *, threads: int) -> Unlabelled:
    """Resizes the pixels to the shape in which training images are stored.

    Args:
        unlabelled: The images.
        shape: Height and width of resident training images; None if images are streamed.
        threads: Number of threads that resize.
    """
    pixels = unlabelled.pixels
    if shape is None or pixels is None:
        return unlabelled._replace(pixels=None)
    if pixels.shape[1:3] == shape:
        return unlabelled
    return unlabelled._replace(pixels=decoding.resize_all(pixels, shape, threads=threads))
