"""Data sets by name, every image looked at once, with a validation split held out of train."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax.checks import SettingError
from remem_jax.data import cache, registry, sources
from remem_jax.data.custom import arrays, class_names, folders, lists, walk
from remem_jax.data.images import decoding
from remem_jax.data.loaders import resident
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Source, Subset
from remem_jax.data.tfds import prepared
from remem_jax.records import DataLoader

CUSTOM: dict[str, Callable[[str], Source]] = {
    "folder": folders.folder,
    "list": lists.listing,
    "arrays": arrays.open_arrays,
}
NAMES = ("digits", *CUSTOM, *registry.RECORDS)
INPUTS = ("auto", "resident", "streamed")
_GIB = 2**30
_DEVICE_SHARE = 0.4  # Of a device's memory that a data set may take; models need the rest.


class Dataset(NamedTuple):
    """A data set that can be trained on.

    Attributes:
        title: What to call it.
        splits: "train", "validation", "test".
        pixels: The same as uint8 images, where they are to live on the device; else None.
        source_size: Height and width of resident images; None where images are streamed.
        resident_bytes: What resident images take on the device.
        resized: Whether resident images are not all of the size that they had.
        classes: Names of the classes, in the order of the labels.
        metric: Name of the metric that decides.
        flip: Whether mirrored images keep their class.
        official: Whether the counts are the official ones; None where there are no such.
        corrupt_images: Images that could not be decoded.
        fingerprint: Hash of all images and labels, and of which are held out.
        skipped_files: See `Source`, as for the rest.
        shapes: Height and width of every image as it is in its file; None where that is not known.
    """

    title: str
    splits: dict[str, Subset]
    pixels: dict[str, resident.Split] | None
    source_size: tuple[int, int] | None
    resident_bytes: int
    resized: bool
    classes: tuple[str, ...]
    metric: str
    flip: bool
    official: bool | None
    corrupt_images: tuple[str, ...]
    fingerprint: str
    skipped_files: Mapping[str, int]
    empty_classes: tuple[str, ...]
    warnings: tuple[str, ...]
    shapes: np.ndarray | None


class Storage(NamedTuple):
    """How a data set is kept while it is used; none of it changes which images there are.

    Attributes:
        input: "resident" on the device, "streamed" from the disk, or "auto": resident if the
            pixels fit.
        stored_size: Largest side of a resident image, in pixels.
        resident_gib: Largest size of all resident images.
        cache: Folder of what was decoded before; empty is that of REMEM_CACHE.
        threads: That decode; 0 is one for each core.
    """

    input: str
    stored_size: int
    resident_gib: float
    cache: str
    threads: int


def open_source(name: str, *, path: str, data_dir: str) -> Source:
    """Opens a data set by name, decoding nothing yet.

    Raises:
        SettingError: If it is unknown, cannot be opened, or has fewer than two classes.
    """
    if name == "digits":
        source = sources.digits()
    elif name in CUSTOM:
        source = CUSTOM[name](path)
    elif name in registry.RECORDS:
        source = prepared.tfds(name, data_dir)
    else:
        raise SettingError(f"Unknown data set {name!r}; config.data.name: {', '.join(NAMES)}.")
    if len(source.classes) <= 1:
        raise SettingError(
            f"{source.title} has one class only ({', '.join(source.classes)}): nothing to "
            "tell apart; config.data.path needs a folder per class."
        )
    return source


def load(
    source: Source, storage: Storage, *, validation: float, seed: int, corrupt_limit: int
) -> Dataset:
    """Looks at every image of a source, and decodes those that are to be resident.

    Resident images keep their size where all have the same, of at most `stored_size` pixels a
    side; else all are resized to squares of `stored_size`, the aspect ratio ignored, as the paper
    does. What was found is kept in the cache, so that the next start reads it there.

    Args:
        source: From `open_source`.
        storage: How it is kept.
        validation: Share of each class of train that is held out for selection, where the
            source has no validation split of its own.
        seed: Decides which.
        corrupt_limit: Images that may be unreadable; they are skipped and listed.

    Raises:
        SettingError: If too many images are corrupt, a split has none that is not, or resident
            images take more memory than allowed.
    """
    found = _look(source, storage, corrupt_limit)
    skipped = tuple(walk.printable(line) for one in found.values() for line in one.skipped)
    if skipped:
        logging.warning("Skipped %d corrupt images: %s", len(skipped), "; ".join(skipped))
    chosen = {name: np.arange(len(one.kept)) for name, one in found.items()}
    if VALIDATION not in found:
        if source.official is None:  # Published splits are taken as they are.
            counts = Counter(source.classes[label] for label in found[TRAIN].labels)
            class_names.require_enough(counts, {TEST}, "readable training images")
        held = sources.stratified(found[TRAIN].labels, validation, seed=seed)
        chosen[VALIDATION] = held
        chosen[TRAIN] = np.setdiff1d(chosen[TRAIN], held)
    splits, pixels, digest = {}, {}, hashlib.sha256()
    for name, rows in chosen.items():
        of = name if name in found else TRAIN
        one = found[of]
        if not len(rows):
            raise SettingError(
                f"The {name} split of {source.title} holds no readable image; config.data needs "
                "at least two images of a class to train on."
            )
        splits[name] = Subset(source.splits[of], one.kept[rows], one.labels[rows])
        if one.pixels is not None:
            whole = len(rows) == len(one.kept)
            image = one.pixels if whole else one.pixels[rows]
            pixels[name] = resident.Split(image, one.labels[rows])
        digest.update(f"{name} {one.digest}".encode() + rows.tobytes())
    on_device = len(pixels) == len(splits)
    return Dataset(
        source.title,
        splits,
        pixels if on_device else None,
        pixels[TRAIN].image.shape[1:3] if on_device else None,
        sum(split.image.nbytes for split in pixels.values()) if on_device else 0,
        on_device and any(one.resized for one in found.values()),
        source.classes,
        source.metric,
        source.flip,
        source.official,
        skipped,
        digest.hexdigest()[:16],
        source.skipped_files,
        source.empty_classes,
        source.warnings,
        _shapes(found.values()),
    )


def _shapes(found: Collection[cache.Found]) -> np.ndarray | None:
    """Height and width of the images of all splits; None where one of them does not say."""
    known = [one.shapes for one in found if one.shapes is not None]
    return np.concatenate(known) if len(known) == len(found) else None


def make_loader(
    dataset: Dataset,
    *,
    image_size: int,
    crop_area: tuple[float, float],
    seed: int,
    threads: int,
    workers: int,
    sharding: jax.sharding.NamedSharding | None = None,
) -> DataLoader:
    """Batches of a data set, by the path that it was loaded for.

    Args:
        dataset: From `load`.
        image_size: Side of what the models see, in pixels.
        crop_area: See `augment.make_train_transform`.
        seed: Decides the order of training, and the crops and flips of a streamed data set.
        threads: That decode what is streamed; 0 is one for each core.
        workers: Processes among which the threads are divided; 0 is this one alone.
        sharding: How a batch is divided among devices; None is the default device.
    """
    if dataset.pixels is not None:
        return resident.make_loader(
            dataset.pixels,
            image_size=image_size,
            crop_area=crop_area,
            flip=dataset.flip,
            seed=seed,
            sharding=sharding,
        )
    from remem_jax.data.loaders import streamed

    options = streamed.AugmentOptions(image_size, crop_area, dataset.flip, seed)
    return streamed.make_loader(
        dataset.splits, options, threads=_threads(threads), workers=workers, sharding=sharding
    )


def _look(source: Source, storage: Storage, corrupt_limit: int) -> dict[str, cache.Found]:
    """Looks at every split; with pixels, where they are to be resident and all of them fit."""
    images = sum(split.examples for split in source.splits.values())
    limit = _limit(storage)
    pixels = storage.input != "streamed" and _fits(
        source, storage, images, _first_shape(source, storage.stored_size), limit
    )
    found: dict[str, cache.Found] = {}
    for name, split in source.splits.items():
        skipped = sum(len(one.skipped) for one in found.values())
        wanted = cache.Wanted(
            storage.stored_size,
            pixels,
            limit * split.examples // max(images, 1),
            corrupt_limit - skipped,
        )
        try:
            found[name] = cache.look(
                split,
                wanted,
                title=f"{source.title}, {name}",
                folder=cache.folder(storage.cache),
                threads=_threads(storage.threads),
            )
        except cache.TooManyCorruptError as error:
            raise SettingError(
                f"More than {corrupt_limit} images cannot be read "
                f"({walk.printable('; '.join(error.args[:10]))}); repair or remove them, or raise "
                "config.data.corrupt_limit."
            ) from error
    if pixels and any(one.pixels is None for one in found.values()):
        _fits(source, storage, images, (storage.stored_size,) * 2, limit)  # Not as the first is.
    return found


def _fits(
    source: Source, storage: Storage, images: int, shape: tuple[int, ...], limit: int
) -> bool:
    """Whether all images fit where resident ones go; raises if they are to be there and do not."""
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


def _first_shape(source: Source, stored_size: int) -> tuple[int, int]:
    """Height and width of resident images if all are like the first."""
    split = source.splits[TRAIN]
    with contextlib.suppress(decoding.CorruptImageError, IndexError):
        image = split.read(0).image
        shape = decoding.size(image) if isinstance(image, bytes) else image.shape[:2]
        if max(shape) <= stored_size:
            return shape[0], shape[1]
    return stored_size, stored_size


def _limit(storage: Storage) -> int:
    """Bytes that resident images may take: what is allowed, and what the device has."""
    allowed = int(storage.resident_gib * _GIB)
    if storage.input == "resident":
        return allowed
    return min(allowed, int(_DEVICE_SHARE * resident.memory()))


def _threads(threads: int) -> int:
    return threads or len(os.sched_getaffinity(0))
