"""Formats results as a table, and lists the failures among them."""

from collections.abc import Iterable, Mapping, Sequence

from tools.aot import rows, targets
from tools.aot.case import FITS, LARGE, Result

_GIB = 2**30
HEADING = ("step", "devices", "plan", "fits", "GiB", "of", "collectives: number, MiB", "seconds")


def line(result: Result) -> list[str]:
    """Returns the cells of a result, below `HEADING`."""
    row, target = rows.ROWS[result.row], targets.TARGETS[result.target]
    fits = {FITS: "yes", LARGE: "no"}.get(result.status, result.status)
    return [
        row.title,
        target.title,
        result.plan,
        fits,
        "" if result.bytes is None else f"{result.bytes / _GIB:.1f}",
        f"{target.memory / _GIB:.1f}",
        _passed(result.passed),
        f"{result.seconds:.0f}",
    ]


def _passed(passed: Mapping[str, Sequence[int]]) -> str:
    """Returns number and MiB of each kind of collective."""
    return "; ".join(
        f"{kind} {number}, {size / 2**20:.1f}" for kind, (number, size) in passed.items()
    )


def markdown(cells: Iterable[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def failures(results: Iterable[Result]) -> list[str]:
    """Returns a line for each result that is not as expected."""
    lines = []
    for result in results:
        row, target = rows.ROWS[result.row], targets.TARGETS[result.target]
        name, known = f"{result.row} on {result.target}", result.target in row.too_large
        if result.status == LARGE and not known:
            size = "" if result.bytes is None else f"{result.bytes / _GIB:.1f} GiB, "
            lines.append(f"{name} does not fit: {size}of {target.memory / _GIB:.1f} GiB.")
        elif result.status == FITS and known:
            lines.append(f"{name} fits: remove it from too_large in tools/aot/rows.py.")
        elif result.status not in (FITS, LARGE):
            lines.append(f"{name}: {result.status}: {result.said}.")
    return lines
