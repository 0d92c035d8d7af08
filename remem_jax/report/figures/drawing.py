"""Figures as files: a picture for print, one for the page, and the numbers behind both.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; markers and
dashes tell the series apart once more, for print in grey.
"""

import io
import itertools
import math
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from remem_jax.report import tables
from remem_jax.storage import files, spreadsheets

FIGURES = "figures"  # Folder of the figures of a run, a study or an analysis.
SIZE = (5.4, 4.0)  # Inches; still readable when a narrow screen shrinks it to 350 pixels.
SMALL = 8.5  # Points; the least that is still readable then.
GREY = "#666666"
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "remem_jax",  # Identifiers are random without it.
    "svg.image_inline": True,
    "svg.fonttype": "none",  # Text stays text: it can be searched.
    "text.parse_math": False,  # A name may hold a dollar sign.
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "lines.markersize": 6,
}
# A decorator: what draws must run under the settings, and `svg` and `save` do.
styled = matplotlib.rc_context(SETTINGS)

_DPI = 200  # Of the PNG.
_RASTER_DPI = 120  # Of pictures inside the SVG; a page holds many.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_WIDE = 6.5  # Inches; what is wider gets a row of its own on a page.
_LEGEND_ROW = 0.22  # Inches.


class Plot(NamedTuple):
    """A plot on a page.

    Attributes:
        title: What it shows.
        caption: How to read it.
        svg: An <svg> element; all text in it is escaped.
        wide: Whether it is too wide to stand beside another.
    """

    title: str
    caption: str
    svg: str
    wide: bool = False


class Drawing(NamedTuple):
    """A figure that is not written yet.

    Attributes:
        name: Stem of its files' names.
        title: What it shows; plain text, as the caption is.
        caption: How to read it.
        figure: The figure.
        columns: Names of the numbers behind it.
        rows: The numbers; None where there is none.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


class Style(NamedTuple):
    """How the marks of a series look."""

    color: str
    marker: str
    dashes: Any


METHODS = {
    "scratch": Style("#000000", "s", ":"),
    "finetune": Style("#0072B2", "o", "--"),
    "remem": Style("#D55E00", "^", "-"),
    "sam": Style("#009E73", "D", "-."),
    "reweight": Style("#CC79A7", "v", (0, (5, 1, 1, 1, 1, 1))),
    "lora": Style("#E69F00", "P", (0, (8, 2))),
    "lora_remem": Style("#56B4E9", "X", (0, (3, 1))),
}
# Lengths without a common divisor: 455 styles before one comes again.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
_DASHES = ("-", (0, (5, 1.5)), (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1)), (0, (9, 2)))


def style(name: str, index: int) -> Style:
    """A method's own style; for another name the one of its index, which is from 0."""
    return METHODS.get(name) or Style(
        _COLORS[index % len(_COLORS)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
    )


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in their order, with a marker that no method among them has."""
    wanted = dict.fromkeys(names)
    taken = {METHODS[name].marker for name in wanted if name in METHODS}
    free = (index for index in itertools.count() if style("", index).marker not in taken)
    return {name: METHODS.get(name) or style(name, next(free)) for name in wanted}


def printable(text: str) -> str:
    """The text on one line, with a mark for what has no place in XML or cannot be encoded."""
    line = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )


def label(name: str, letters: int = 40) -> str:
    """A method's title, or another name, on one line and not longer than so many letters."""
    text = printable(tables.method_title(name))
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def labels(names: Iterable[str], letters: int = 40) -> list[str]:
    """A label for each name; those that would look the same are numbered from the second on."""
    made: list[str] = []
    for name in names:
        text = label(name, letters)
        numbered = (f"{label(name, letters - 4)} ({count})" for count in itertools.count(2))
        while text in made:
            text = next(numbered)
        made.append(text)
    return made


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a value to draw."""
    return value is not None and math.isfinite(value)


def finite(value: float | None) -> float:
    """The value, or NaN, which matplotlib leaves out."""
    return value if is_finite(value) else math.nan


def left_out(count: int, of: str) -> str:
    """A sentence, after a blank, on what was left out; empty if nothing was."""
    return f" {of} left out for want of finite numbers: {count}." if count else ""


def new(*, rows: int = 1, columns: int = 1, size: tuple[float, float] = SIZE) -> Figure:
    """A figure with panels, whose `axes` lists them row by row.

    Args:
        rows: Panels above each other; they share their x axis.
        columns: Panels beside each other.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    figure.subplots(rows, columns, sharex="col")
    return figure


def band(axes: Axes, x: Sequence[float], low: Any, high: Any, color: str) -> None:
    """A pale band between two curves."""
    axes.fill_between(np.asarray(x, float), low, high, color=color, alpha=0.15, linewidth=0)


def legend(figure: Figure, others: Sequence[Any] = ()) -> None:
    """Puts one legend beneath all panels, which names each label once; the figure grows by it.

    Args:
        figure: The figure, with at least one panel.
        others: Further handles, with labels.
    """
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    found |= {handle.get_label(): handle for handle in others}
    if not found:
        return
    # A letter takes about 0.09 inches, and a handle 0.5.
    widest = 0.5 + 0.09 * max(map(len, found))
    columns = max(1, min(4, len(found), int(figure.get_figwidth() / widest)))
    figure.set_figheight(
        figure.get_figheight() + _LEGEND_ROW * (math.ceil(len(found) / columns) - 1)
    )
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False
    )


@styled
def svg(figure: Figure, name: str) -> str:
    """The <svg> element; its identifiers begin with the name, since a page holds many."""
    text = _render(figure, format="svg", metadata=_NO_METADATA, dpi=_RASTER_DPI).decode()

    def renamed(tag: re.Match[str]) -> str:
        # Equal pictures would have one identifier; none refers to it.
        own = re.sub(r' id="\w*"', "", tag[0]) if tag[0].startswith("<image") else tag[0]
        return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}_", own)

    return re.sub("<[^<>]+>", renamed, text[text.index("<svg") :])


@styled
def save(directory: pathlib.Path, drawing: Drawing) -> Plot:
    """Writes a drawing's PNG, SVG and CSV; each is written whole or not at all.

    The same input gives the same bytes.

    Args:
        directory: Where the files go; made if it is not there.
        drawing: What to write.

    Returns:
        The plot, to put into a page.
    """
    element = svg(drawing.figure, re.sub(r"\W+", "_", drawing.name))
    picture = _render(drawing.figure, format="png", metadata={"Software": None}, dpi=_DPI)
    path = directory / drawing.name
    files.write_text(path.with_name(f"{path.name}.csv"), comma_separated(drawing))
    files.write_text(
        path.with_name(f"{path.name}.svg"), f'<?xml version="1.0" encoding="utf-8"?>\n{element}'
    )
    with files.replacing(path.with_name(f"{path.name}.png")) as file:
        file.write(picture)
    wide = float(drawing.figure.get_figwidth()) > _WIDE
    return Plot(drawing.title, drawing.caption, element, wide)


def comma_separated(drawing: Drawing) -> str:
    """The numbers behind a drawing as CSV, each in full; empty where there is none."""
    rows = ([_cell(value) for value in row] for row in drawing.rows)
    return spreadsheets.text([drawing.columns, *rows])


def _cell(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str):
        return printable(value)
    return float(value) if isinstance(value, float | np.floating) else value


def _render(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The font has not every letter; in the SVG it is the reader's fonts that count.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
            # Each layout starts from the last: only the first would be the same each time.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(file, **options)
    return file.getvalue()


def fields(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[list[str | int | float | None]]:
    """Some fields of each record, as rows of a drawing; None where one is not there."""
    return ([row.get(name) for name in names] for row in rows)
