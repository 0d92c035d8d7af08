"""Data sets by name, scanned once, with the splits that they lack held out of train."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax.checks import SettingError, printable
from remem_jax.data import bundled, registry, scanning, sources, splitting
from remem_jax.data import unlabelled as unlabelled_images
from remem_jax.data.custom import arrays, class_names, folders, group_names, lists
from remem_jax.data.custom import unlabelled as unlabelled_folder
from remem_jax.data.groups import Groups
from remem_jax.data.images import decoding
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.data.inspection import repeated
from remem_jax.data.inspection.repeated import Repeated
from remem_jax.data.loaders import resident
from remem_jax.data.residency import Storage as Storage
from remem_jax.data.sources import TEST, TRAIN, UNLABELLED, VALIDATION, Source, Subset
from remem_jax.data.splitting import Rules as Rules
from remem_jax.data.tfds import named, prepared
from remem_jax.data.unlabelled import Unlabelled as Unlabelled
from remem_jax.records import DataLoader

# Data sets that need neither a download nor files of the user.
INCLUDED: dict[str, Callable[[], Source]] = {
    bundled.EUROSAT_PART: bundled.eurosat_part,
    "digits": sources.digits,
}
CUSTOM: dict[str, Callable[..., Source]] = {
    "folder": folders.folder,
    "list": lists.listing,
    "arrays": arrays.open_arrays,
}
NAMES = (*INCLUDED, *CUSTOM, *registry.RECORDS)
INPUTS = ("auto", "resident", "streamed")
FLIPS = ("auto", "True", "False")
METRICS = ("auto", registry.TOP1, registry.MEAN_PER_CLASS)


class Dataset(NamedTuple):
    """A data set that can be trained on.

    Attributes:
        title: Name for reports and messages.
        splits: "train", "validation" and "test".
        pixels: Resident images of each split; None if images are streamed.
        source_size: Height and width of resident images; None if images are streamed.
        resident_bytes: Size of resident images on the device.
        resized: Whether resident images were resized to be stored.
        classes: Names of the classes, in the order of the labels.
        metric: Name of the metric that selects models.
        flip: Whether a mirrored image keeps its class.
        official: Whether the counts are the official ones; None if there are no official ones.
        corrupt_images: Name of each image that cannot be decoded, and why.
        fingerprint: Hash of all images and labels, and of which are held out.
        skipped_files: See `Source`.
        empty_classes: See `Source`.
        warnings: See `Source`.
        shapes: Height and width of every labelled image in its file; None if they are unknown.
        unlabelled: Images without labels, for students with a teacher; None if there are none.
        repeated: Test images that are also in train or validation; None if published.
        held_out: Splits that were held out of train.
        groups: Groups of training images that were held out together; None if there are none.
        selection: Split that selects models: "validation", or "test" if there are no validation
            images; "" if models are not selected any more.
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
    unlabelled: Unlabelled | None = None
    repeated: Repeated | None = None
    held_out: tuple[str, ...] = ()
    groups: Groups | None = None
    selection: str = VALIDATION
    refit: bool = False

    def for_refit(self) -> "Dataset":
        """Returns the data set that is trained on with validation, which then selects nothing."""
        train = sources.joined(self.splits[TRAIN], self.splits[VALIDATION])
        return self._replace(
            splits={TRAIN: train, TEST: self.splits[TEST]},
            fingerprint=hashlib.sha256(f"refit {self.fingerprint}".encode()).hexdigest()[:16],
            selection="",
        )


def open_source(
    name: str,
    *,
    path: str,
    data_dir: str,
    choices: named.Choices = named.FIND,
    root: str = "",
    group_pattern: str = "",
    enough: bool = True,
) -> Source:
    """Opens a data set by name, without decoding images.

    Args:
        name: One of `NAMES`, or "tfds:" and the name of a data set in TFDS.
        path: Images of the user.
        data_dir: TFDS's folder; "" is its default.
        choices: Splits and features of a "tfds:" data set.
        root: Folder of the relative paths in a list; "" is that of the list.
        group_pattern: See `group_names.by_pattern`; "" is none.
        enough: Whether each class of a user's own images must have enough to train on.

    Raises:
        class_names.TooFewImagesError: If a class has fewer images than a run needs.
        SettingError: If the name is unknown, the data set cannot be opened, or it has fewer than
            two classes.
    """
    find_groups = group_names.by_pattern(group_pattern) if group_pattern else None
    if name in INCLUDED:
        source = INCLUDED[name]()
    elif name == "folder":
        source = folders.folder(path, enough=enough, find_groups=find_groups)
    elif name == "list":
        source = lists.listing(path, root, enough=enough, find_groups=find_groups)
    elif name in CUSTOM:
        source = CUSTOM[name](path) if enough else CUSTOM[name](path, enough=False)
    elif name in registry.RECORDS:
        source = prepared.tfds(name, data_dir)
    elif named.is_name(name):
        source = named.tfds(name, data_dir, choices, find_groups=find_groups)
    else:
        known = ", ".join([*NAMES, named.FORM])
        raise SettingError(f"Unknown data set {name!r}; config.data.name: {known}.")
    if len(source.classes) <= 1:
        raise SettingError(
            f"{source.title} has one class only ({', '.join(source.classes)}): nothing to "
            "tell apart; config.data.path needs a folder per class."
        )
    return source


def with_rules(source: Source, *, flip: str, metric: str, validation: bool) -> Source:
    """Replaces a data set's own rules by those of the settings.

    Args:
        source: Return value of `open_source`.
        flip: One of `FLIPS`; whether a flipped image keeps its class.
        metric: One of `METRICS`; the metric that selects models.
        validation: Whether a validation split of the data set is used.
    """
    splits = {name: split for name, split in source.splits.items() if name != VALIDATION}
    return source._replace(
        splits=source.splits if validation else splits,
        flip=source.flip if flip == "auto" else flip == "True",
        metric=source.metric if metric == "auto" else metric,
    )


def with_unlabelled(source: Source, path: str, *, largest_share: float) -> Source:
    """Adds the unlabelled images of a folder to a data set, for students with a teacher.

    Args:
        source: Return value of `open_source`.
        path: The folder.
        largest_share: Largest share of unlabelled images in a batch; above 0, below 1.

    Raises:
        SettingError: If the folder has no images.
    """
    opened = unlabelled_folder.folder(path, largest_share=largest_share)
    return source._replace(unlabelled=opened)


def load(
    source: Source, storage: Storage, rules: Rules, *, corrupt_limit: int, refit: bool = False
) -> Dataset:
    """Scans every image of a source, decodes resident images, and holds out missing splits.

    Resident images keep their size if all have the same, of at most `stored_size` pixels a side.
    Otherwise all are resized to squares of `stored_size`, ignoring the aspect ratio, as in the
    paper. The result of the scan is cached, so that later starts are fast.

    Args:
        source: Return value of `open_source`.
        storage: Where images are during the run.
        rules: How images are held out of train.
        corrupt_limit: Largest number of images that cannot be decoded; they are skipped and listed.
        refit: See `Dataset`.

    Raises:
        SettingError: If too many images are corrupt, a split has no others, or resident images
            take more memory than allowed.
    """
    scans = scanning.scan_all(source, storage, corrupt_limit)
    corrupt = tuple(printable(line) for scan in scans.values() for line in scan.corrupt)
    if corrupt:
        logging.warning("Skipped %d corrupt images: %s", len(corrupt), "; ".join(corrupt))
    on_device = all(scan.pixels is not None for scan in scans.values())
    without_labels = scans.pop(UNLABELLED, None)
    missing = splitting.missing_splits(source, rules.validation)
    if missing and not source.published:
        counts = Counter(source.classes[label] for label in scans[TRAIN].labels)
        drawn = {name for name in sources.SPLITS if name not in missing}
        class_names.require_enough(counts, drawn, "readable training images")
    threads = scanning.available(storage.threads)
    division = splitting.divide(source, scans, rules, folder=storage.cache, threads=threads)
    splits, pixels, digest = {}, {}, hashlib.sha256()
    for name, (split, scan, rows) in division.parts.items():
        _require_images(source, name, len(rows), division)
        splits[name] = Subset(split, scan.kept[rows], scan.labels[rows])
        if scan.pixels is not None:
            is_whole = len(rows) == len(scan.kept)
            image = scan.pixels if is_whole else scan.pixels[rows]
            pixels[name] = resident.Split(image, scan.labels[rows])
        digest.update(f"{name} {scan.digest}".encode() + rows.tobytes())
    for warning in division.warnings:
        logging.warning("%s: %s.", source.title, warning)
    dataset = Dataset(
        source.title,
        splits,
        pixels if on_device else None,
        pixels[TRAIN].image.shape[1:3] if on_device else None,
        sum(split.image.nbytes for split in pixels.values()) if on_device else 0,
        on_device and any(scan.resized for scan in scans.values()),
        source.classes,
        source.metric,
        source.flip,
        source.official,
        corrupt,
        digest.hexdigest()[:16],
        source.skipped_files,
        source.empty_classes,
        source.warnings + division.warnings,
        np.concatenate([scan.shapes for scan in scans.values()]),
        repeated=repeated.of_parts(source, division.parts, splits, threads),
        held_out=division.held_out,
        groups=division.groups,
        selection=VALIDATION if VALIDATION in splits else TEST,
        refit=refit,
    )
    if source.unlabelled is None or without_labels is None:
        return dataset
    chosen = unlabelled_images.choose(
        source.unlabelled, without_labels, scans.values(), train=len(splits[TRAIN].rows)
    )
    chosen = unlabelled_images.stored_as(chosen, dataset.source_size, threads=threads)
    more = 0 if chosen.pixels is None else chosen.pixels.nbytes
    return dataset._replace(unlabelled=chosen, resident_bytes=dataset.resident_bytes + more)


def _require_images(source: Source, name: str, images: int, division: splitting.Division) -> None:
    """Checks that a split has an image."""
    if images:
        return
    if name in division.held_out and division.groups and division.groups.named:
        raise SettingError(
            f"No {name} image of {source.title} can be held out without dividing a group of "
            "images: every class is in one group only. Correct the groups (a list's column, or "
            "config.data.group_pattern or group_feature), or add images."
        )
    raise SettingError(
        f"The {name} split of {source.title} holds no readable image; config.data needs "
        "at least two images of a class to train on."
    )


def make_loader(
    dataset: Dataset,
    evaluated: Preprocessing,
    *,
    crop_area: tuple[float, float],
    balance: float,
    seed: int,
    threads: int,
    workers: int,
    sharding: jax.sharding.NamedSharding | None = None,
) -> DataLoader:
    """Builds the data loader of a data set: resident or streamed, as it was loaded.

    If resident images were resized to squares, and evaluation crops their centre, evaluation reads
    them from their source: a square has lost the aspect ratio.

    Args:
        dataset: Return value of `load`.
        evaluated: Preprocessing of evaluation images.
        crop_area: See `augment.make_train_transform`.
        balance: See `order.TrainOrder`.
        seed: Seed of the order of training, and of crops and flips of streamed images.
        threads: Number of threads that decode streamed images; 0 is one per core.
        workers: Number of processes that share the threads; 0 is this process alone.
        sharding: Sharding of a batch; None is the default device.
    """
    loader, from_files = None, bool(evaluated.crop) and dataset.resized
    others, splits = dataset.unlabelled, {**dataset.splits}
    share = others.share if others else 0.0
    if others:
        splits[UNLABELLED] = others.subset
    if dataset.pixels is not None:
        pixels = {TRAIN: dataset.pixels[TRAIN]} if from_files else {**dataset.pixels}
        if dataset.refit:
            pixels |= _refitted(dataset.pixels, scanning.available(threads))
        if others and others.pixels is not None:
            pixels[UNLABELLED] = resident.Split(others.pixels, others.subset.labels)
        loader = resident.make_loader(
            pixels,
            evaluated,
            crop_area=crop_area,
            flip=dataset.flip,
            balance=balance,
            seed=seed,
            sharding=sharding,
            unlabelled_share=share,
        )
    if loader and not from_files:
        return loader
    from remem_jax.data.loaders import streamed  # Imports Grain, which most runs do not need.

    augmentation = streamed.AugmentOptions(
        evaluated.image_size, crop_area, dataset.flip, balance, seed, evaluated.crop
    )
    read = streamed.make_loader(
        splits,
        augmentation,
        threads=scanning.available(threads),
        workers=workers,
        sharding=sharding,
        unlabelled_share=share,
    )
    if loader is None:
        return read
    evaluated_from_files = {
        "evaluation": read.evaluation,
        "evaluation_transform": read.evaluation_transform,
    }
    return loader._replace(
        **evaluated_from_files,
        refit=loader.refit and loader.refit._replace(**evaluated_from_files),
    )


def _refitted(pixels: Mapping[str, resident.Split], threads: int) -> Mapping[str, resident.Split]:
    """Returns the resident images of validation in the shape of the training images."""
    validation, (_, height, width, _) = pixels[VALIDATION], pixels[TRAIN].image.shape
    if validation.image.shape[1:3] == (height, width):
        return {VALIDATION: validation}
    images = np.asarray(validation.image)
    resized = decoding.resize_all(images, (height, width), threads=threads)
    return {resident.REFIT: resident.Split(resized, validation.label)}
