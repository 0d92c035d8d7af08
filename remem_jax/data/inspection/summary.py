"""Inspects a source: reads its images, finds duplicates, and counts."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from remem_jax import checks
from remem_jax.data import groups as group_of_images
from remem_jax.data import sources, splitting
from remem_jax.data.inspection import duplicates, images
from remem_jax.data.inspection.duplicates import Group
from remem_jax.data.inspection.images import Image


class Inspection(NamedTuple):
    """What was found out about the images of a source.

    Attributes:
        source: The source.
        images: All images, split by split.
        groups: Groups of duplicates; members are indices of `images`. Groups with different labels
            come first, then those in several splits.
    """

    source: sources.Source
    images: list[Image]
    groups: list[Group]

    def members(self, group: Group) -> list[Image]:
        """Returns the images of a group."""
        return [self.images[i] for i in group.members]


class Sizes(NamedTuple):
    """Sizes of the images that can be read, in pixels.

    Attributes:
        height: Least, median and largest height.
        width: The same of the width.
        different: Number of different sizes.
    """

    height: tuple[int, int, int]
    width: tuple[int, int, int]
    different: int


def inspect(source: sources.Source, *, threads: int) -> Inspection:
    """Reads all images of a source, and finds their duplicates; shows the progress.

    Raises:
        SettingError: If none of the images can be read.
    """
    read = images.read(source, threads=threads)
    checks.require(
        any(image.content for image in read),
        f"None of the images of {source.title} can be read (the first: {read[0].error}): give "
        "others.",
    )
    rows = [i for i, image in enumerate(read) if image.content]
    contents = [image.content for image in read if image.content]
    found = duplicates.groups(
        [content.file for content in contents],
        [content.pixels for content in contents],
        np.stack([content.thumbnail for content in contents]),
        lambda i: _stored(source, read[rows[i]]),
        threads=threads,
    )
    groups = [
        group._replace(members=tuple(rows[member] for member in group.members)) for group in found
    ]
    if sources.TEST not in source.splits:
        read = _with_test(source, read, groups)
    return Inspection(source, read, sorted(groups, key=lambda group: _rank(read, group)))


def _with_test(
    source: sources.Source, read: Sequence[Image], duplicated: Sequence[Group]
) -> list[Image]:
    """Marks the images of train that a run holds out as test."""
    rows = [i for i, image in enumerate(read) if image.split == sources.TRAIN and image.content]
    place = {row: i for i, row in enumerate(rows)}
    kept = np.asarray([read[i].row for i in rows])
    labels = np.asarray([read[i].label for i in rows])
    names = source.splits[sources.TRAIN].groups
    within = [[place[i] for i in group.members if i in place] for group in duplicated]
    together = group_of_images.of_images(
        labels,
        None if names is None else names[kept],
        [np.asarray(members) for members in within if len(members) > 1],
        parts=3,  # A run holds out validation images, too.
    )
    chosen = splitting.test_images(source, kept, labels, together and together.numbers)
    tests = {rows[i] for i in chosen.tolist()}
    return [
        image._replace(split=sources.TEST) if i in tests else image for i, image in enumerate(read)
    ]


def _stored(source: sources.Source, image: Image) -> bytes | np.ndarray:
    return source.splits[image.origin].read(image.row).image


def _rank(read: Sequence[Image], group: Group) -> tuple[bool, bool, int]:
    members = [read[i] for i in group.members]
    return not have_different_labels(members), not are_in_several_splits(members), kind(group)


def kind(group: Group) -> int:
    """Returns the index of a group's kind in `duplicates.KINDS`: the most alike first."""
    return duplicates.KINDS.index(group.kind)


def have_different_labels(members: Sequence[Image]) -> bool:
    """Returns whether images are of more than one class."""
    return len({image.label for image in members}) > 1


def are_in_several_splits(members: Sequence[Image]) -> bool:
    """Returns whether images are in more than one split."""
    return len({image.split for image in members}) > 1


def counts(inspection: Inspection) -> dict[str, Int[np.ndarray, " klass"]]:
    """Returns the number of readable images of each class, by split."""
    classes = len(inspection.source.classes)
    labels = {
        name: [
            image.label for image in inspection.images if image.split == name and not image.error
        ]
        for name in sources.SPLITS
        if name in {image.split for image in inspection.images}
    }
    return {
        name: np.bincount(np.asarray(of_split, np.int64), minlength=classes)
        for name, of_split in labels.items()
    }


def single(inspection: Inspection) -> list[str]:
    """Returns the classes with one readable image in all splits together."""
    total = np.sum(list(counts(inspection).values()), axis=0)
    return [inspection.source.classes[i] for i in np.flatnonzero(total == 1)]


def unreadable(inspection: Inspection) -> list[Image]:
    """Returns the images that cannot be read."""
    return [image for image in inspection.images if image.error]


def sizes(inspection: Inspection) -> Sizes:
    """Summarises the sizes of the readable images."""
    shapes = np.asarray([image.content.size for image in inspection.images if image.content])
    height, width = ((int(side.min()), int(np.median(side)), int(side.max())) for side in shapes.T)
    return Sizes(height, width, len(np.unique(shapes, axis=0)))


def forms(inspection: Inspection) -> Counter[str]:
    """Counts the readable images by file format."""
    return Counter(image.content.form for image in inspection.images if image.content)


def colours(inspection: Inspection) -> Counter[str]:
    """Counts the readable images by colour mode."""
    return Counter(image.content.colour for image in inspection.images if image.content)


def turned(inspection: Inspection) -> int:
    """Counts the images that their EXIF orientation turns."""
    return sum(image.content.turned for image in inspection.images if image.content)
