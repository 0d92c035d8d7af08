"""Decides whether the images of a data set are resident on the device."""

import contextlib
from typing import NamedTuple

from absl import logging

from remem_jax.checks import SettingError
from remem_jax.data.images import decoding
from remem_jax.data.loaders import resident
from remem_jax.data.sources import TRAIN, Source

_GIB = 2**30
_DEVICE_SHARE = 0.4  # Share of a device's memory for a data set; models need the rest.


class Storage(NamedTuple):
    """Where images are during a run; it does not change which images are used.

    Attributes:
        input: "resident" on the device, "streamed" from the disk, or "auto": resident if the
            pixels fit.
        stored_size: Largest side of a resident image, in pixels.
        resident_gib: Largest size of all resident images.
        cache: Folder of the cache; "" is the folder of REMEM_CACHE.
        threads: Number of threads that decode; 0 is one per core.
    """

    input: str
    stored_size: int
    resident_gib: float
    cache: str
    threads: int


def fits(source: Source, storage: Storage, images: int, shape: tuple[int, ...], limit: int) -> bool:
    """Returns whether the images of a source fit on the device.

    Args:
        source: The data set.
        storage: Where images are during the run.
        images: Number of images.
        shape: Height and width of a resident image.
        limit: Result of `max_bytes`.

    Raises:
        SettingError: If they do not fit, and `storage` requires resident images.
    """
    gib = images * shape[0] * shape[1] * 3 / _GIB
    size = f"{gib:.2f} GiB as {images:,} images of {shape[0]} x {shape[1]} pixels"
    if gib * _GIB <= limit:
        logging.info("%s is resident on the device: %s.", source.title, size)
        return True
    if storage.input == "resident":
        raise SettingError(
            f"{source.title} takes {size}; config.data.resident_gib allows "
            f"{storage.resident_gib}: raise it, lower config.data.stored_size, or set "
            "config.data.input to streamed."
        )
    logging.info("%s is streamed: resident it would take %s.", source.title, size)
    return False


def first_shape(source: Source, stored_size: int) -> tuple[int, int]:
    """Returns height and width of resident images if all have the shape of the first one."""
    split = source.splits[TRAIN]
    with contextlib.suppress(decoding.CorruptImageError, IndexError):
        image = split.read(0).image
        shape = decoding.size(image) if isinstance(image, bytes) else image.shape[:2]
        if max(shape) <= stored_size:
            return shape[0], shape[1]
    return stored_size, stored_size


def max_bytes(storage: Storage) -> int:
    """Returns the largest size of resident images that the settings and the device allow."""
    allowed = int(storage.resident_gib * _GIB)
    if storage.input == "resident":
        return allowed
    return min(allowed, int(_DEVICE_SHARE * resident.memory()))
