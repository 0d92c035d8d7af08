"""Pictures in rows and columns, with few words."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from remem_jax.report.figures import drawing

# Inches.
_SIDE = 1.05
_GAP = 0.07
_WIDE_GAP = 0.25  # Between two kinds of columns.
_LINE = 0.2  # Of text.
_NAMES = 0.95  # Room for the names of rows.
_LETTER = 0.072  # Of text, roughly.


class Tile(NamedTuple):
    """A picture.

    Attributes:
        picture: Height x width x 3, from 0 to 1; what is outside is cut off.
        label: What stands beneath it; may be empty.
    """

    picture: Any
    label: str = ""


class Row(NamedTuple):
    """A row of pictures.

    Attributes:
        name: What stands at its left; may be empty, and may have several lines.
        tiles: Its pictures; None where there is none.
    """

    name: str
    tiles: Sequence[Tile | None]


def figure(rows: Sequence[Row], heads: Mapping[int, str], *, gap_before: int = 0) -> Figure:
    """A figure of at least one row.

    Args:
        rows: From the top; they may differ in length.
        heads: What stands over a column, by its place; it begins where the column does.
        gap_before: Place of a column with a gap before it; 0 for none.
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
    made = Figure(figsize=(width, height))
    ends = [starts[column] for column in sorted(heads)[1:]] + [width]
    for column, end in zip(sorted(heads), ends, strict=True):
        made.text(
            starts[column] / width,
            1 - 0.6 * _LINE / height,
            drawing.label(heads[column], int((end - starts[column]) / _LETTER)),
            va="center",
            fontsize=drawing.SMALL,
        )
    for place, row in enumerate(rows):
        top = height - _LINE - 0.05 - place * (_SIDE + line + _GAP)
        name = "\n".join(
            drawing.label(part, int(_NAMES / _LETTER)) for part in row.name.splitlines()
        )
        made.text(
            0.05 / width,
            (top - _SIDE / 2) / height,
            name,
            va="center",
            fontsize=drawing.SMALL,
        )
        for start, tile in zip(starts, row.tiles, strict=False):
            if tile is not None:
                box = (start / width, (top - _SIDE) / height, _SIDE / width, _SIDE / height)
                _draw(made, box, tile)
    return made


def _draw(made: Figure, box: tuple[float, float, float, float], tile: Tile) -> None:
    axes = made.add_axes(box)
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
    shares = np.nan_to_num(np.asarray(picture, np.float64), nan=0.0)
    return np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)
