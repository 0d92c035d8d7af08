"""Scans all images of a data set, and decides whether they are resident on the device."""

import os
from collections.abc import Mapping

from remem_jax.checks import SettingError
from remem_jax.data import cache, residency
from remem_jax.data.residency import Storage
from remem_jax.data.scan import ScanOptions, ScanResult, TooManyCorruptError
from remem_jax.data.sources import TRAIN, UNLABELLED, Source


def scan_all(source: Source, storage: Storage, corrupt_limit: int) -> dict[str, ScanResult]:
    """Scans every split; stores pixels if images are to be resident and all of them fit."""
    splits = {**source.splits}
    if source.unlabelled:
        splits[UNLABELLED] = source.unlabelled.split
    images = sum(split.examples for split in splits.values())
    limit = residency.max_bytes(storage)
    pixels = storage.input != "streamed" and residency.fits(
        source, storage, images, residency.first_shape(source, storage.stored_size), limit
    )
    scans: dict[str, ScanResult] = {}
    for name, split in splits.items():
        corrupt = sum(len(scan.corrupt) for scan in scans.values())
        options = ScanOptions(
            storage.stored_size,
            pixels,
            limit * split.examples // max(images, 1),
            corrupt_limit - corrupt,
        )
        try:
            scans[name] = cache.scan_split(
                split,
                options,
                title=f"{source.title}, {name}",
                folder=cache.folder(storage.cache),
                threads=available(storage.threads),
            )
        except TooManyCorruptError as error:
            raise SettingError(
                f"More than {corrupt_limit} images cannot be read "
                f"({'; '.join(error.args[:10])}); repair or remove them, or raise "
                "config.data.corrupt_limit."
            ) from error
    if pixels and any(scan.pixels is None for scan in scans.values()):
        # The images are not all as small as the first one.
        residency.fits(source, storage, images, (storage.stored_size,) * 2, limit)
    elif pixels and not _fit_as_train(source, storage, scans, limit):
        return {name: scan._replace(pixels=None) for name, scan in scans.items()}
    return scans


def _fit_as_train(
    source: Source, storage: Storage, scans: Mapping[str, ScanResult], limit: int
) -> bool:
    """Returns whether images still fit on the device if unlabelled ones are stored as train's."""
    stored = scans[TRAIN].pixels, scans[UNLABELLED].pixels if UNLABELLED in scans else None
    if stored[0] is None or stored[1] is None or stored[0].shape[1:] == stored[1].shape[1:]:
        return True
    images = sum(len(scan.kept) for scan in scans.values())
    return residency.fits(source, storage, images, stored[0].shape[1:3], limit)


def available(threads: int) -> int:
    """Returns a number of threads, where 0 is one per core."""
    return threads or len(os.sched_getaffinity(0))
