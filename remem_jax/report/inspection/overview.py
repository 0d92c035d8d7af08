"""Sentences and tables about images before a run; all is plain text, not escaped yet."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from remem_jax.data.custom import walk
from remem_jax.data.inspection import duplicates, summary
from remem_jax.data.inspection.duplicates import Group
from remem_jax.data.inspection.images import Image
from remem_jax.data.inspection.summary import Inspection
from remem_jax.data.sources import TEST
from remem_jax.report import tables
from remem_jax.report.tables import Table

_SHOWN = 5  # Smallest and largest classes that are named.


def title(inspection: Inspection) -> str:
    """Names the data set, with the number of its images and classes."""
    images, classes = len(inspection.images), len(inspection.source.classes)
    failed = len(summary.unreadable(inspection))
    cannot = f", of which {failed:,} cannot be read" if failed else ""
    return f"{inspection.source.title}: {images:,} images in {classes:,} classes{cannot}"


def splits(inspection: Inspection) -> Table:
    """Builds the table of the splits: readable images, in all and in a class."""
    rows = []
    for name, counts in summary.counts(inspection).items():
        in_class = (np.min(counts), np.median(counts), np.max(counts))
        rows.append((name, f"{counts.sum():,}", *(f"{number:,.0f}" for number in in_class)))
    columns = ("Split", "Images", "In the smallest class", "In the median class", "In the largest")
    return Table("Splits", columns, tuple(rows))


def classes(inspection: Inspection) -> Table:
    """Builds the table of readable images by class and split, the largest class first."""
    counts = summary.counts(inspection)
    total = np.sum(list(counts.values()), axis=0)
    names = inspection.source.classes
    rows = [
        (names[i], *(f"{of_split[i]:,}" for of_split in counts.values()))
        for i in np.argsort(-total, kind="stable")
    ]
    return Table("Classes", ("Class", *counts), tuple(rows))


def remarks(inspection: Inspection) -> list[str]:
    """Describes classes, sizes, formats and colours, and what is odd, a sentence each."""
    source = inspection.source
    sentences = [
        _extremes(inspection),
        _sizes(summary.sizes(inspection)),
        f"Formats: {_counted(summary.forms(inspection))}.",
        f"Colours: {_counted(summary.colours(inspection))}.",
    ]
    turned = summary.turned(inspection)
    if turned:
        verb = "is" if turned == 1 else "are"
        sentences.append(f"{turned:,} {verb} turned upright by the EXIF orientation.")
    single = summary.single(inspection)
    if single:
        sentences.append(f"Classes with one image: {tables.names(single)}.")
    passed_over = walk.describe_skipped(source.skipped_files, source.empty_classes)
    return [*sentences, *(f"{_capital(text)}." for text in (passed_over, *source.warnings) if text)]


def _extremes(inspection: Inspection) -> str:
    """Names the smallest and largest classes."""
    total = np.sum(list(summary.counts(inspection).values()), axis=0)
    order = np.argsort(total, kind="stable").tolist()

    def listed(indices: Iterable[int]) -> str:
        return ", ".join(f"{inspection.source.classes[i]} {total[i]:,}" for i in indices)

    if total.min() == total.max():
        return f"Every class has {_number(int(total.max()), 'image')}."
    if len(order) <= 2 * _SHOWN:
        return f"Images by class: {listed(order[::-1])}."
    smallest, largest = listed(order[:_SHOWN]), listed(order[: -_SHOWN - 1 : -1])
    return f"Smallest classes: {smallest}. Largest: {largest}."


def _sizes(sizes: summary.Sizes) -> str:
    (low, middle, high), (narrow, common, wide) = sizes.height, sizes.width
    if sizes.different == 1:
        return f"Sizes: all {low:,} x {narrow:,} pixels."
    return (
        f"Sizes: {low:,} to {high:,} pixels high (median {middle:,}), {narrow:,} to {wide:,} wide "
        f"(median {common:,}); {sizes.different:,} different ones."
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def duplicated(inspection: Inspection) -> str:
    """Summarises the duplicates in a sentence or two."""
    groups = inspection.groups
    if not groups:
        return "No duplicates."
    images = sum(len(group.members) for group in groups)
    kinds = Counter(group.kind for group in groups)
    by_kind = ", ".join(f"{kind}: {kinds[kind]:,}" for kind in duplicates.KINDS if kinds[kind])
    number = _number(len(groups), "group")
    sentences = [f"{number} of duplicates with {images:,} images ({by_kind})."]
    different = sum(summary.have_different_labels(inspection.members(group)) for group in groups)
    if different:
        sentences.append(f"{_number(different, 'group')} with different labels.")
    repeated = repeated_tests(inspection)
    if repeated:
        tests = sum(image.split == TEST and not image.error for image in inspection.images)
        verb = "has" if repeated == 1 else "have"
        sentences.append(
            f"{repeated:,} of {tests:,} test images {verb} a duplicate in another split: the test "
            "accuracy will include pictures that were trained or selected on."
        )
    return " ".join(sentences)


def repeated_tests(inspection: Inspection) -> int:
    """Returns the number of test images with a duplicate in another split."""
    return sum(
        sum(image.split == TEST for image in members)
        for members in map(inspection.members, inspection.groups)
        if summary.are_in_several_splits(members)
    )


def heading(group: Group, members: Sequence[Image]) -> str:
    """Says what a group of duplicates shares, and in what it differs."""
    phrases = [_capital(group.kind)]
    if summary.have_different_labels(members):
        phrases.append("different labels")
    if summary.are_in_several_splits(members):
        phrases.append(f"in {' and '.join(dict.fromkeys(image.split for image in members))}")
    return ", ".join(phrases)


def label(inspection: Inspection, image: Image) -> str:
    """Returns the name of an image's class; empty if it is unknown."""
    return "" if image.label is None else inspection.source.classes[image.label]


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
