"""Divides the scanned images of a data set into train, validation and test."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from remem_jax.data import groups, held_out, registry, sources
from remem_jax.data.groups import Groups
from remem_jax.data.scan import ScanResult
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Source, Split

TEST_SHARE = 0.2  # Of each class of train, where a data set has nothing else to test on.
_TEST_SEED = 0  # The test images are the same in all runs.
# Total variation between the classes of two splits from which on top-1 judges them differently, and
# what chance adds to it, in units of the square root of classes per image.
_OTHER, _CHANCE = 0.2, 0.8


class Rules(NamedTuple):
    """How images are held out of train, if the data set lacks a split.

    Attributes:
        validation: Share of each class that is held out to select models; 0 for none.
        seed: Seed of the choice of these images.
        near_duplicates: Whether near duplicates of users' own images are held out together.
    """

    validation: float
    seed: int
    near_duplicates: bool


class Part(NamedTuple):
    """The images of a split of a run.

    Attributes:
        split: The split of the source.
        scan: The scan that they are part of.
        rows: Their indices in the scan.
    """

    split: Split
    scan: ScanResult
    rows: np.ndarray


class Division(NamedTuple):
    """The division of a data set.

    Attributes:
        parts: Part of each split.
        held_out: Splits that were held out of train.
        groups: Groups that were held out together; None if there are none.
        warnings: Warnings, a sentence each.
    """

    parts: dict[str, Part]
    held_out: tuple[str, ...]
    groups: Groups | None
    warnings: tuple[str, ...]


def divide(
    source: Source, scans: Mapping[str, ScanResult], rules: Rules, *, folder: str, threads: int
) -> Division:
    """Holds out of train the splits that a data set lacks: first the test split, then validation.

    Args:
        source: The data set.
        scans: Scans of its labelled splits.
        rules: How images are held out.
        folder: Folder of the cache; see `groups.of_train`.
        threads: Number of threads.
    """
    missing = missing_splits(source, rules.validation)
    parts = {
        name: Part(source.splits[name], scan, np.arange(len(scan.kept)))
        for name, scan in scans.items()
    }
    train, together = parts[TRAIN], None
    if missing:
        together = groups.of_train(
            train.split,
            train.scan,
            parts=1 + len(missing),
            near_duplicates=rules.near_duplicates and not source.published,
            folder=folder,
            threads=threads,
        )
    numbers = together and together.numbers
    if TEST in missing:
        test = test_images(source, train.scan.kept, train.scan.labels, numbers)
        rest = np.setdiff1d(train.rows, test)
        for name, chosen in ((TRAIN, rest), (TEST, test)):
            parts[name] = Part(train.split, train.scan.select(chosen), np.arange(len(chosen)))
        train, numbers = parts[TRAIN], None if numbers is None else numbers[rest]
    if VALIDATION in missing:
        chosen = held_out.draw(train.scan.labels, numbers, rules.validation, seed=rules.seed)
        parts[VALIDATION] = train._replace(rows=chosen)
        parts[TRAIN] = train._replace(rows=np.setdiff1d(train.rows, chosen))
    warnings = (
        *_shared_groups(source),
        *_other_proportions(source, parts),
        *(groups.warnings(together, source.classes) if together else ()),
    )
    return Division(parts, missing, together, warnings)


def missing_splits(source: Source, validation: float) -> tuple[str, ...]:
    """Returns the splits that are held out of train, in this order.

    Args:
        source: The data set.
        validation: See `Rules`.
    """
    wanted = (TEST, VALIDATION) if validation else (TEST,)
    return tuple(name for name in wanted if name not in source.splits)


def train_images(source: Source, rules: Rules) -> int:
    """Returns the number of training images that are left, if all images can be read.

    Near duplicates are not known before the images are scanned, and are not considered.

    Args:
        source: The data set.
        rules: How images are held out.
    """
    train, missing = source.splits[TRAIN], missing_splits(source, rules.validation)
    left, labels = train.examples, train.labels
    numbers = None if train.groups is None else groups.numbered(train.groups)
    shares = {TEST: (TEST_SHARE, _TEST_SEED), VALIDATION: (rules.validation, rules.seed)}
    for name in missing:
        share, seed = shares[name]
        if labels is None:
            left -= round(share * left)
            continue
        chosen = held_out.draw(labels, numbers, share, seed=seed)
        labels = np.delete(labels, chosen)
        numbers = None if numbers is None else np.delete(numbers, chosen)
        left = len(labels)
    return left


def test_images(
    source: Source,
    kept: Int[np.ndarray, " image"],
    labels: Int[np.ndarray, " image"],
    numbers: Int[np.ndarray, " image"] | None,
) -> Int[np.ndarray, " test"]:
    """Chooses the images to test on, of a data set without a test split.

    Args:
        source: The data set.
        kept: Rows of train of the images that can be read, increasing.
        labels: Class of each of them.
        numbers: Group of each of them; None if each is a group of its own.

    Returns:
        Indices among these images.
    """
    train, rows = source.splits[TRAIN], kept
    if numbers is None and train.labels is not None:
        # Images that cannot be read take part, so that one that is repaired changes no other.
        rows, labels = np.arange(train.examples), train.labels
    if not source.published:
        # In the order of the names, as in earlier versions, so that the images stay the same.
        rank = np.argsort(np.argsort(np.asarray(source.classes, object)))
        labels = rank[labels]
    chosen = held_out.draw(labels, numbers, TEST_SHARE, seed=_TEST_SEED)
    return np.flatnonzero(np.isin(kept, rows[chosen]))


def _shared_groups(source: Source) -> list[str]:
    """Returns a warning for each pair of the data set's own splits that divide named groups."""
    pairs = itertools.combinations([name for name in sources.SPLITS if name in source.splits], 2)
    counted = [
        (first, second, groups.shared(source.splits[first], source.splits[second]))
        for first, second in pairs
    ]
    return [
        f"{count:,} group{'s' * (count > 1)} of images {'are' if count > 1 else 'is'} in both "
        f"{first} and {second}, as the data set divides them"
        for first, second, count in counted
        if count
    ]


def _other_proportions(source: Source, parts: Mapping[str, Part]) -> list[str]:
    """Returns a warning if top-1 accuracy judges validation and test by different classes."""
    if source.published or source.metric != registry.TOP1 or VALIDATION not in parts:
        return []
    shares, fewest = [], min(len(parts[name].rows) for name in (TRAIN, TEST))
    for name in (VALIDATION, TEST):
        # Validation images that are held out have the proportions of train, which has more.
        part = parts[TRAIN] if parts[name].split is parts[TRAIN].split else parts[name]
        counts = np.bincount(part.scan.labels[part.rows], minlength=len(source.classes))
        shares.append(counts / max(counts.sum(), 1))
    distance = np.abs(shares[0] - shares[1]).sum() / 2
    if distance < _OTHER + _CHANCE * np.sqrt(len(source.classes) / max(fewest, 1)):
        return []
    return [
        "validation and test have their classes in different proportions, so that top-1 on "
        "validation selects for other classes than those that test judges; "
        "config.data.metric=mean_per_class does not depend on proportions"
    ]
