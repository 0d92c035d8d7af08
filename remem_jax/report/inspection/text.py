"""The text that `remem data` prints."""

import textwrap
from collections.abc import Iterator, Sequence

from remem_jax.data.inspection import summary
from remem_jax.data.inspection.labels import Check
from remem_jax.data.inspection.summary import Inspection
from remem_jax.report import tables
from remem_jax.report.inspection import overview, suspects
from remem_jax.report.tables import Table

_WIDTH = 100
_GROUPS, _MEMBERS, _UNREADABLE, _SUSPECTS = 10, 6, 10, 10  # Largest numbers that are printed.


def lines(inspection: Inspection, refused: str) -> Iterator[str]:
    """Yields the lines about the images, with the most important duplicates.

    Args:
        inspection: What was found out about the images.
        refused: Why a run refuses the images; empty if it does not.
    """
    yield tables.printable(overview.title(inspection))
    yield ""
    yield from plain(overview.splits(inspection))
    yield ""
    for remark in overview.remarks(inspection):
        yield from textwrap.wrap(tables.printable(remark), _WIDTH, subsequent_indent="  ")
    if refused:
        yield from ("", *textwrap.wrap(f"A run refuses these images: {refused}", _WIDTH))
    failed = summary.unreadable(inspection)
    if failed:
        yield from ("", f"Unreadable images ({len(failed):,}):")
        for image in failed[:_UNREADABLE]:
            yield f"  {tables.printable(f'{image.name}: {image.error}')}"
        yield from _more(len(failed) - _UNREADABLE)
    yield ""
    yield from textwrap.wrap(overview.duplicated(inspection), _WIDTH)
    for group in inspection.groups[:_GROUPS]:
        members = inspection.members(group)
        yield f"  {overview.heading(group, members)}"
        cells = [
            (image.split, overview.label(inspection, image), image.name)
            for image in members[:_MEMBERS]
        ]
        yield from (f"    {line}" for line in _aligned(cells))
        yield from _more(len(members) - _MEMBERS, indent="    ")
    yield from _more(len(inspection.groups) - _GROUPS)


def suspicious(check: Check, classes: Sequence[str]) -> Iterator[str]:
    """Yields the lines about labels that a model contradicts."""
    for part in suspects.parts(check):
        yield from ("", *textwrap.wrap(tables.printable(part.text), _WIDTH))
        cells = [
            (suspect.split, suspects.line(suspect, classes), suspect.name)
            for suspect in part.suspects[:_SUSPECTS]
        ]
        yield from (f"  {line}" for line in _aligned(cells))
        yield from _more(len(part.suspects) - _SUSPECTS)


def plain(table: Table) -> Iterator[str]:
    """Yields the lines of a table of numbers, with its columns aligned."""
    return _aligned([table.columns, *table.rows], numbers=range(1, len(table.columns)))


def _aligned(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Iterator[str]:
    """Yields rows with their columns aligned: to the right if they are `numbers`."""
    printable = [[tables.printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*printable, strict=True)]
    for row in printable:
        cells = [
            f"{cell:{'>' if i in numbers else '<'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _more(number: int, indent: str = "  ") -> Iterator[str]:
    """Yields a line about further items, if there are any."""
    if number > 0:
        yield f"{indent}and {number:,} more"
