"""Writes the page about images before a run, and the list of their duplicates."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from remem_jax.data.inspection import summary
from remem_jax.data.inspection.images import Image
from remem_jax.data.inspection.summary import Inspection
from remem_jax.report import rendering
from remem_jax.report.inspection import overview, pictures
from remem_jax.storage import files, spreadsheets

PAGE, DUPLICATES = "index.html", "duplicates.csv"
_GROUPS, _MEMBERS = 200, 12  # Largest numbers that are shown on the page; the list has all.


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


def write(folder: pathlib.Path, inspection: Inspection, refused: str) -> None:
    """Writes index.html and duplicates.csv.

    Args:
        folder: The folder to write to; created if it is missing.
        inspection: What was found out about the images.
        refused: Why a run refuses the images; empty if it does not.
    """
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
        "unreadable": summary.unreadable(inspection),
        "classes": overview.classes(inspection),
    }
    files.write_text(folder / PAGE, rendering.html("inspection/page.html.jinja", content))
    files.write_text(folder / DUPLICATES, spreadsheets.text(_rows(inspection)))


def _group(
    inspection: Inspection, members: Sequence[Image], group: summary.Group
) -> dict[str, object]:
    heading = overview.heading(group, members)
    if len(members) > _MEMBERS:
        heading += f", the first {_MEMBERS} of {len(members):,}"
    shown = [
        picture(inspection, image, (f"{image.split}: {overview.label(inspection, image)}",))
        for image in members[:_MEMBERS]
    ]
    return {"heading": heading, "pictures": shown}


def picture(inspection: Inspection, image: Image, lines: tuple[str, ...]) -> Picture:
    """Returns an image with its thumbnail and what to say about it."""
    split = inspection.source.splits[image.split]
    return Picture(pictures.address(split, image.row), lines, image.name)


def _rows(inspection: Inspection) -> Iterator[tuple[object, ...]]:
    """Yields the header, and a row for each image that has a duplicate."""
    yield ("group", "kind", "split", "label", "file")
    for number, group in enumerate(inspection.groups, start=1):
        for image in inspection.members(group):
            label = overview.label(inspection, image)
            yield (number, group.kind, image.split, label, image.name)
