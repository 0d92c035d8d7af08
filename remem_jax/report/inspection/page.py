"""Writes the page about images before a run, and the list of their duplicates."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from remem_jax.data.inspection import summary
from remem_jax.data.inspection.images import Image
from remem_jax.data.inspection.labels import Check
from remem_jax.data.inspection.summary import Inspection
from remem_jax.report import rendering
from remem_jax.report.inspection import overview, pictures, suspects
from remem_jax.storage import files, spreadsheets

PAGE, DUPLICATES, SUSPECTS = "index.html", "duplicates.csv", "suspicious_labels.csv"
# Largest numbers that are shown on the page; the lists have all.
_GROUPS, _MEMBERS, _SUSPECTS = 200, 12, 60


class Picture(NamedTuple):
    """An image on the page.

    Attributes:
        thumbnail: See `pictures.address`.
        lines: What to say about it.
        name: Its name.
    """

    thumbnail: str
    lines: tuple[str, ...]
    name: str


def write(folder: pathlib.Path, inspection: Inspection, refused: str, check: Check | None) -> None:
    """Writes index.html, duplicates.csv and, if labels were checked, suspicious_labels.csv.

    Args:
        folder: The folder to write to; created if it is missing.
        inspection: What was found out about the images.
        refused: Why a run refuses the images; empty if it does not.
        check: The labels, as the model of a run sees them; None if they were not checked.
    """
    classes = inspection.source.classes
    shown = inspection.groups[:_GROUPS]
    more = len(inspection.groups) - len(shown)
    content = {
        "title": overview.title(inspection),
        "refused": refused,
        "splits": overview.splits(inspection),
        "remarks": overview.remarks(inspection),
        "duplicated": overview.duplicated(inspection),
        "groups": [_group(inspection, inspection.members(group), group) for group in shown],
        "more_groups": f"{more:,} more groups are in {DUPLICATES}." if more else "",
        "suspects": [_part(part, classes) for part in suspects.parts(check)] if check else [],
        "unreadable": summary.unreadable(inspection),
        "classes": overview.classes(inspection),
    }
    files.write_text(folder / PAGE, rendering.html("inspection/page.html.jinja", content))
    files.write_text(folder / DUPLICATES, spreadsheets.text(_rows(inspection)))
    if check:
        files.write_text(folder / SUSPECTS, spreadsheets.text(suspects.rows(check, classes)))


def _group(
    inspection: Inspection, members: Sequence[Image], group: summary.Group
) -> dict[str, object]:
    heading = overview.heading(group, members)
    if len(members) > _MEMBERS:
        heading += f", the first {_MEMBERS} of {len(members):,}"
    splits = inspection.source.splits
    shown = [
        Picture(
            pictures.address(splits[image.origin], image.row),
            (f"{image.split}: {overview.label(inspection, image)}",),
            image.name,
        )
        for image in members[:_MEMBERS]
    ]
    return {"heading": heading, "pictures": shown}


def _part(part: suspects.Part, classes: Sequence[str]) -> dict[str, object]:
    shown = [
        Picture(
            pictures.address(suspect.subset.split, int(suspect.subset.rows[suspect.image])),
            (suspect.split, suspects.line(suspect, classes)),
            suspect.name,
        )
        for suspect in part.suspects[:_SUSPECTS]
    ]
    more = len(part.suspects) - len(shown)
    return {
        "text": part.text,
        "pictures": shown,
        "more": f"{more:,} more are in {SUSPECTS}." if more else "",
    }


def _rows(inspection: Inspection) -> Iterator[tuple[object, ...]]:
    """Yields the header, and a row for each image that has a duplicate."""
    yield ("group", "kind", "split", "label", "file")
    for number, group in enumerate(inspection.groups, start=1):
        for image in inspection.members(group):
            label = overview.label(inspection, image)
            yield (number, group.kind, image.split, label, image.name)
