"""Draws a grid of pictures with short labels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from remem_jax.report.figures import drawing

# Lengths in inches.
_SIDE = 1.05
_GAP = 0.07
_WIDE_GAP = 0.25  # Between two groups of columns.
_LINE = 0.2  # Height of a line of text.
_NAMES = 0.95  # Width of the names of rows.
_LETTER = 0.072  # Approximate width of a character.


class Tile(NamedTuple):
    """A picture with its label.

    Attributes:
        picture: Array of height x width x 3; values are clipped to [0, 1].
        label: Text below the picture; may be empty.
    """

    picture: Any
    label: str = ""


class Row(NamedTuple):
    """A row of pictures.

    Attributes:
        name: Text to the left of the row; may be empty or have several lines.
        tiles: Pictures; None for an empty place.
    """

    name: str
    tiles: Sequence[Tile | None]


def figure(rows: Sequence[Row], heads: Mapping[int, str], *, gap_before: int = 0) -> Figure:
    """Draws at least one row of pictures.

    Args:
        rows: Rows from top to bottom; they may differ in length.
        heads: Headers by index of their column, left-aligned with it.
        gap_before: Index of a column with a gap before it; 0 for none.
    """
    columns = max(len(row.tiles) for row in rows)
    left = _NAMES if any(row.name for row in rows) else 0.05
    starts = [
        left + column * (_SIDE + _GAP) + (_WIDE_GAP if 0 < gap_before <= column else 0)
        for column in range(columns)
    ]
    line = _LINE if any(tile and tile.label for row in rows for tile in row.tiles) else 0
    height = _LINE + 0.05 + len(rows) * (_SIDE + line + _GAP)
    width = max(starts[-1] + _SIDE + 0.05, 3.0)
    canvas = Figure(figsize=(width, height))
    ends = [starts[column] for column in sorted(heads)[1:]] + [width]
    for column, end in zip(sorted(heads), ends, strict=True):
        canvas.text(
            starts[column] / width,
            1 - 0.6 * _LINE / height,
            drawing.label(heads[column], int((end - starts[column]) / _LETTER)),
            va="center",
            fontsize=drawing.SMALL,
        )
    for index, row in enumerate(rows):
        top = height - _LINE - 0.05 - index * (_SIDE + line + _GAP)
        name = "\n".join(
            drawing.label(part, int(_NAMES / _LETTER)) for part in row.name.splitlines()
        )
        canvas.text(
            0.05 / width,
            (top - _SIDE / 2) / height,
            name,
            va="center",
            fontsize=drawing.SMALL,
        )
        for start, tile in zip(starts, row.tiles, strict=False):
            if tile is not None:
                box = (start / width, (top - _SIDE) / height, _SIDE / width, _SIDE / height)
                _draw(canvas, box, tile)
    return canvas


def _draw(canvas: Figure, box: tuple[float, float, float, float], tile: Tile) -> None:
    axes = canvas.add_axes(box)
    axes.imshow(_eight_bits(tile.picture))
    axes.set_axis_off()
    if tile.label:
        axes.set_title(
            drawing.label(tile.label, int((_SIDE + _GAP) / _LETTER)),
            y=0,
            pad=-11,
            fontsize=drawing.SMALL,
        )


def _eight_bits(picture: Any) -> UInt8[np.ndarray, "height width 3"]:
    values = np.nan_to_num(np.asarray(picture, np.float64), nan=0.0)
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
