"""Writes figures as files: PNG for print, SVG for the report, and the numbers behind both as CSV.

Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; markers and
dashes distinguish the series in grey print as well.
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
SMALL = 8.5  # Font size in points; the smallest that is still readable then.
GREY = "#666666"
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "remem_jax",  # Without it, identifiers are random.
    "svg.image_inline": True,
    "svg.fonttype": "none",  # Text stays text, so that it can be searched.
    "text.parse_math": False,  # A name may contain a dollar sign.
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
# Decorator: drawing functions must run with these settings; `svg` and `save` do.
styled = matplotlib.rc_context(SETTINGS)

_DPI = 200  # Resolution of the PNG.
_RASTER_DPI = 120  # Resolution of pictures inside the SVG; a report has many.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_WIDE = 6.5  # Inches; a wider figure gets a row of its own in the report.
_LEGEND_ROW = 0.22  # Height of a row of the legend, in inches.


class Plot(NamedTuple):
    """A plot in a report.

    Attributes:
        title: Title of the plot.
        caption: Explanation for the reader.
        svg: An <svg> element; all text in it is escaped.
        wide: Whether the plot is too wide to share a row.
    """

    title: str
    caption: str
    svg: str
    wide: bool = False


class Drawing(NamedTuple):
    """A figure that has not been written yet.

    Attributes:
        name: Stem of the file names.
        title: Title of the figure, as plain text.
        caption: Explanation for the reader, as plain text.
        figure: The figure.
        columns: Column names of the CSV file.
        rows: Rows of the CSV file; None for a missing number.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


class Style(NamedTuple):
    """Appearance of a series."""

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
# The lengths are coprime: 455 styles before one repeats.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
_DASHES = ("-", (0, (5, 1.5)), (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1)), (0, (9, 2)))


def style(name: str, index: int) -> Style:
    """Returns the style of a method; for any other name, the style of its index (from 0)."""
    return METHODS.get(name) or Style(
        _COLORS[index % len(_COLORS)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
    )


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Returns a style for each name, in order; markers of methods are not reused."""
    wanted = dict.fromkeys(names)
    used_markers = {METHODS[name].marker for name in wanted if name in METHODS}
    free = (index for index in itertools.count() if style("", index).marker not in used_markers)
    return {name: METHODS.get(name) or style(name, next(free)) for name in wanted}


def label(name: str, letters: int = 40) -> str:
    """Returns a method's title, or another name, on one line, shortened to `letters` characters."""
    text = tables.printable(tables.method_title(name))
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def labels(names: Iterable[str], letters: int = 40) -> list[str]:
    """Returns a label for each name; equal labels are numbered from the second on."""
    unique: list[str] = []
    for name in names:
        text = label(name, letters)
        numbered = (f"{label(name, letters - 4)} ({count})" for count in itertools.count(2))
        while text in unique:
            text = next(numbered)
        unique.append(text)
    return unique


def is_finite(value: float | None) -> TypeGuard[float]:
    """Returns whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def finite(value: float | None) -> float:
    """Returns the value, or NaN, which matplotlib does not draw."""
    return value if is_finite(value) else math.nan


def left_out(count: int, kind: str) -> str:
    """Returns a sentence, after a blank, on how many points were left out; empty if none."""
    return f" {kind} left out because they are not finite: {count}." if count else ""


def new(
    *, rows: int = 1, columns: int = 1, size: tuple[float, float] = SIZE, share: bool = True
) -> Figure:
    """Creates a figure with panels; its `axes` lists them row by row.

    Args:
        rows: Number of panels in a column.
        columns: Number of panels in a row.
        size: Width and height in inches.
        share: Whether the panels of a column share their x axis.
    """
    figure = Figure(figsize=size, layout="constrained")
    figure.subplots(rows, columns, sharex="col" if share else False)
    return figure


def band(axes: Axes, x: Sequence[float], low: Any, high: Any, color: str) -> None:
    """Draws a pale band between two curves."""
    axes.fill_between(np.asarray(x, float), low, high, color=color, alpha=0.15, linewidth=0)


def legend(figure: Figure, others: Sequence[Any] = ()) -> None:
    """Adds one legend below all panels, with each label once, and enlarges the figure to fit it.

    Args:
        figure: The figure, with at least one panel.
        others: Further handles, with labels.
    """
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    handles |= {handle.get_label(): handle for handle in others}
    if not handles:
        return
    # A character takes about 0.09 inches, and a handle 0.5.
    widest = 0.5 + 0.09 * max(map(len, handles))
    columns = max(1, min(4, len(handles), int(figure.get_figwidth() / widest)))
    figure.set_figheight(
        figure.get_figheight() + _LEGEND_ROW * (math.ceil(len(handles) / columns) - 1)
    )
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


@styled
def svg(figure: Figure, name: str) -> str:
    """Returns the <svg> element; its identifiers begin with `name` to be unique in a report."""
    text = _render(figure, format="svg", metadata=_NO_METADATA, dpi=_RASTER_DPI).decode()

    def renamed(tag: re.Match[str]) -> str:
        # Equal pictures would share an identifier, which nothing refers to.
        element = re.sub(r' id="\w*"', "", tag[0]) if tag[0].startswith("<image") else tag[0]
        return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}_", element)

    return re.sub("<[^<>]+>", renamed, text[text.index("<svg") :])


@styled
def save(directory: pathlib.Path, drawing: Drawing) -> Plot:
    """Writes a drawing as PNG, SVG and CSV, each atomically.

    The same input gives the same bytes.

    Args:
        directory: Folder of the files; created if missing.
        drawing: The drawing.

    Returns:
        The plot to include in a report.
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
    """Formats the numbers behind a drawing as CSV, in full precision; missing ones are empty."""
    rows = ([_cell(value) for value in row] for row in drawing.rows)
    return spreadsheets.text([drawing.columns, *rows])


def _cell(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str):
        return tables.printable(value)
    return float(value) if isinstance(value, float | np.floating) else value


def _render(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The font lacks some characters; the SVG uses the reader's fonts.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
            # A layout depends on the one before, so only the first is reproducible.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(file, **options)
    return file.getvalue()


def fields(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[list[str | int | float | None]]:
    """Returns the named fields of each record, as rows of a drawing; None if one is missing."""
    return ([row.get(name) for name in names] for row in rows)
