"""Data sets by name, decoded, with a validation split held out of train."""

import contextlib
import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from remem_jax.checks import SettingError
from remem_jax.data import registry, sources
from remem_jax.data.device import Split
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Source

OWN: dict[str, Callable[[str], Source]] = {"folder": sources.folder, "arrays": sources.arrays}
NAMES = ("digits", *OWN, *registry.RECORDS)


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
        title: What to call it.
        splits: "train", "validation", "test"; all images of one size.
        classes: Names of the classes, in the order of the labels.
        metric: Name of the metric that decides.
        flip: Whether mirrored images keep their class.
        official: True if the counts are those of the official data set, False if they are
            not, None where there is no official one.
        skipped: Images that could not be decoded.
        fingerprint: Hash of all pixels and labels.
    """

    title: str
    splits: dict[str, Split]
    classes: tuple[str, ...]
    metric: str
    flip: bool
    official: bool | None
    skipped: tuple[str, ...]
    fingerprint: str


def open_source(name: str, *, path: str, data_dir: str) -> Source:
    """Opens a data set by name, decoding nothing yet.

    Raises:
        SettingError: If it is unknown, not there, or has fewer than two classes.
    """
    if name == "digits":
        source = sources.digits()
    elif name in OWN:
        source = OWN[name](path)
    elif name in registry.RECORDS:
        source = sources.tfds(name, data_dir)
    else:
        raise SettingError(f"Unknown data set {name!r}; config.data.name: {', '.join(NAMES)}.")
    if len(source.classes) <= 1:
        raise SettingError(
            f"{source.title} has one class only ({', '.join(source.classes)}): nothing to "
            "tell apart; config.data.path needs a folder per class."
        )
    return source


def load(
    source: Source,
    *,
    validation: float,
    seed: int,
    stored_size: int,
    corrupt_limit: int,
    resident_gib: float,
) -> Dataset:
    """Decodes a source into memory.

    Images keep their size where all have the same, of at most `stored_size` pixels a side; else
    all are resized to squares of `stored_size`, the aspect ratio ignored, as the paper does.

    Args:
        source: From `open_source`.
        validation: Share of each class of train that is held out for selection, where the
            source has no validation split of its own.
        seed: Decides which.
        stored_size: Largest side kept, in pixels.
        corrupt_limit: Images that may be unreadable; they are skipped and listed.
        resident_gib: Largest size of all images in memory, in GiB.

    Raises:
        SettingError: If too many images are corrupt, or all of them take too much memory.
    """
    # Before anything is decoded, and again when all sizes are known.
    _require_room(source, _first_shape(source, stored_size), resident_gib)
    skipped: list[str] = []
    decoded = {
        name: _decode(split, stored_size, skipped, corrupt_limit)
        for name, split in source.splits.items()
    }
    shapes = {image.shape for images, _ in decoded.values() for image in images}
    stored = (stored_size, stored_size, 3)
    shape = stored if len(shapes) != 1 else shapes.pop()
    _require_room(source, shape, resident_gib)
    splits = {name: _stack(*found, shape) for name, found in decoded.items()}
    if VALIDATION not in splits:
        splits |= _hold_out(splits[TRAIN], validation, seed)
    for name, split in splits.items():
        if not len(split.label):
            raise SettingError(
                f"The {name} split of {source.title} holds no readable image; config.data needs "
                "at least two images of a class to train on."
            )
    if skipped:
        logging.warning("Skipped %d corrupt images: %s", len(skipped), "; ".join(skipped))
    return Dataset(
        source.title,
        splits,
        source.classes,
        source.metric,
        source.flip,
        _is_official(source),
        tuple(skipped),
        fingerprint(splits),
    )


def _first_shape(source: Source, stored_size: int) -> tuple[int, ...]:
    """Shape of the images in memory if all are like the first."""
    with contextlib.suppress(sources.CorruptImageError, IndexError):
        shape = source.splits[TRAIN].image(0).shape
        if max(shape) <= stored_size:
            return shape
    return stored_size, stored_size, 3


def _require_room(source: Source, shape: tuple[int, ...], resident_gib: float) -> None:
    examples = sum(len(split.labels) for split in source.splits.values())
    gib = examples * math.prod(shape) / 2**30
    if gib > resident_gib:
        raise SettingError(
            f"{source.title} takes {gib:.1f} GiB as {examples} images of {shape[0]} x {shape[1]} "
            f"pixels; config.data.resident_gib allows {resident_gib}: raise it, or lower "
            "config.data.stored_size."
        )


def fingerprint(splits: dict[str, Split]) -> str:
    """Hash of all pixels and labels."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        image, label = splits[name]
        digest.update(f"{name} {image.shape}".encode())
        digest.update(np.asarray(image).tobytes())
        digest.update(np.asarray(label).tobytes())
    return digest.hexdigest()[:16]


def _decode(
    split: sources.Split, stored_size: int, skipped: list[str], corrupt_limit: int
) -> tuple[list[np.ndarray], np.ndarray]:
    images, kept = [], []
    for i in range(len(split.labels)):
        try:
            image = split.image(i)
        except sources.CorruptImageError as error:
            skipped.append(f"{split.name(i)}: {error}")
            if len(skipped) > corrupt_limit:
                raise SettingError(
                    f"More than {corrupt_limit} images cannot be read ({'; '.join(skipped[:10])}); "
                    "repair or remove them, or raise config.data.corrupt_limit."
                ) from error
            continue
        if max(image.shape[:2]) > stored_size:
            image = _resized(image, stored_size)
        images.append(image)
        kept.append(i)
    return images, split.labels[kept]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _stack(images: list[np.ndarray], labels: np.ndarray, shape: tuple[int, ...]) -> Split:
    out = np.empty((len(images), *shape), np.uint8)
    for i, image in enumerate(images):
        out[i] = image if image.shape == shape else _resized(image, shape[0])
    return Split(out, labels)


def _hold_out(train: Split, share: float, seed: int) -> dict[str, Split]:
    held = sources.stratified(np.asarray(train.label), share, seed=seed)
    kept = np.setdiff1d(np.arange(len(train.label)), held)
    return {
        TRAIN: Split(train.image[kept], train.label[kept]),
        VALIDATION: Split(train.image[held], train.label[held]),
    }


def _is_official(source: Source) -> bool | None:
    if source.official is None:
        return None
    counts = (len(source.splits[TRAIN].labels), len(source.splits[TEST].labels))
    pairs = zip(counts, source.official, strict=True)
    return all(abs(count - wanted) <= registry.COUNT_TOLERANCE for count, wanted in pairs)
