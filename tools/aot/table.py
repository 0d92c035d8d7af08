"""The table of the tool, and whether what it says is as it should be."""

from collections.abc import Iterable, Mapping, Sequence

from tools.aot import rows, targets
from tools.aot.case import FITS, LARGE, Result

_GIB = 2**30
HEADING = ("step", "devices", "plan", "fits", "GiB", "of", "collectives: number, MiB", "seconds")


def line(result: Result) -> list[str]:
    """The cells of a result, below `HEADING`."""
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
    """How often devices exchange what in a step."""
    return "; ".join(
        f"{kind} {number}, {size / 2**20:.1f}" for kind, (number, size) in passed.items()
    )


def markdown(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def failures(results: Iterable[Result]) -> list[str]:
    """What is not as it should be, as one line each."""
    found = []
    for result in results:
        row, target = rows.ROWS[result.row], targets.TARGETS[result.target]
        name, known = f"{result.row} on {result.target}", result.target in row.too_large
        if result.status == LARGE and not known:
            size = "" if result.bytes is None else f"{result.bytes / _GIB:.1f} GiB, "
            found.append(f"{name} does not fit: {size}of {target.memory / _GIB:.1f} GiB.")
        elif result.status == FITS and known:
            found.append(f"{name} fits: take it out of too_large in tools/aot/rows.py.")
        elif result.status not in (FITS, LARGE):
            found.append(f"{name}: {result.status}: {result.said}.")
    return found
