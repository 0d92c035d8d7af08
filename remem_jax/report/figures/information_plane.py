"""Figures of how much of the image a teacher's features keep, and of how well it classifies.

Information is minus the excess of the reconstruction loss over its lower bound, in nats per
sub-pixel: up to a constant, a lower bound of I(X; F). Only features of the same size are
comparable.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Figures 1, 2, 4 and 6.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from remem_jax.report.figures import drawing

Point = Mapping[str, Any]

INFORMATION = "Information (bound minus reconstruction loss), nats per sub-pixel"
_ERROR = "Teacher's error, %"
_MAP = "cividis"  # Lighter is better; suited to colour-blind readers and to grey print.
_AREA = 60  # Area of a marker, in square points.
_APART = (0.2, 0.09)  # Minimum distance of two labels, as fractions of the axes.


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Returns the points that no other point dominates (as good in both and better in one).

    Args:
        points: Points with "error" and "excess"; lower is better. A point where one of them is
            None or not finite is not on the front and dominates nothing.

    Returns:
        Indices of the points, ordered by error. Equal points are all on the front.
    """
    order = sorted(
        (points[i]["error"], points[i]["excess"], i)
        for i in range(len(points))
        if _is_complete(points[i])
    )
    front: list[tuple[float, float, int]] = []
    for point in order:
        if not front or point[1] < front[-1][1] or point[:2] == front[-1][:2]:
            front.append(point)
    return [index for _, _, index in front]


def _is_complete(point: Point) -> bool:
    return drawing.is_finite(point["error"]) and drawing.is_finite(point["excess"])


@drawing.styled
def information_plane(
    points: Sequence[Point], *, title: str, name: str, caption: str = ""
) -> drawing.Drawing | None:
    """Draws teachers by information and error, coloured by the accuracy of their best student.

    Args:
        points: For each teacher, "series", "label", "step" or None, "error" (fraction), "excess"
            (nats per sub-pixel), "deviation" of the excess over seeds of the decoder or None, and
            "student", the accuracy of its best student (fraction) or None.
        title: Title of the figure.
        name: Stem of the file names.
        caption: Text to put before the explanation of the figure.

    Returns:
        The figure; None if no point has both an error and an excess.
    """
    complete = [point for point in points if _is_complete(point)]
    if not complete:
        return None
    figure = drawing.new(size=(5.8, 4.4))
    axes = figure.axes[0]
    axes.set(xlabel=f"{INFORMATION}\nright is better", ylabel=f"{_ERROR} (lower is better)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    scale = _scale(complete)
    styles = drawing.styles(point["series"] for point in complete)
    handles = []
    for (series, style), label in zip(styles.items(), drawing.labels(styles), strict=True):
        in_series = [point for point in complete if point["series"] == series]
        is_joined = _join(axes, in_series, style)
        _mark(axes, in_series, style, scale)
        appearance = style._replace(
            color=style.color if scale is None else drawing.GREY,
            dashes=style.dashes if is_joined else "none",
        )
        handles.append(_handle(label, appearance))
    if scale is not None and any(not drawing.is_finite(point["student"]) for point in complete):
        hollow = _handle("no student", drawing.Style("#999999", "o", "none"))
        hollow.set_markerfacecolor("none")
        handles.append(hollow)
    front = pareto_front(complete)
    _front(axes, [complete[index] for index in front])
    if scale is not None:
        bar = figure.colorbar(ScalarMappable(scale, _MAP), ax=axes, pad=0.02, aspect=30)
        bar.set_label("Best student's accuracy, %")
    drawing.legend(figure, handles)
    on_front = {id(complete[index]) for index in front}
    names = ("series", "label", "step", "error", "excess", "deviation", "student")
    return drawing.Drawing(
        name,
        title,
        f"{caption} {_caption(scale is not None)}".strip()
        + drawing.left_out(len(points) - len(complete), "Points"),
        figure,
        (*names, "on_front"),
        [
            [*row, int(id(point) in on_front)]
            for row, point in zip(drawing.fields(points, names), points, strict=True)
        ],
    )


def _caption(has_students: bool) -> str:
    colours = " Lighter marks have better students; hollow marks have none." if has_students else ""
    return (
        "Each mark is a teacher; thin lines connect the checkpoints of a series in the order of "
        f"steps.{colours} Horizontal bars: one sample standard deviation over seeds of the "
        "decoder. No teacher has both a lower error and more information than one on the Pareto "
        "front."
    )


def _scale(points: Sequence[Point]) -> Normalize | None:
    """Returns the colour scale of the students' accuracies in percent; None without students."""
    accuracies = [100 * p["student"] for p in points if drawing.is_finite(p["student"])]
    if not accuracies:
        return None
    low, high = min(accuracies), max(accuracies)
    return Normalize(low, high) if low < high else Normalize(low - 1, high + 1)


def _join(axes: Axes, points: Sequence[Point], style: drawing.Style) -> bool:
    """Connects points that have a step; returns whether there was more than one."""
    steps = sorted((p for p in points if p["step"] is not None), key=lambda p: p["step"])
    if len(steps) > 1:
        axes.plot(
            [-point["excess"] for point in steps],
            [100 * point["error"] for point in steps],
            color=drawing.GREY,
            linestyle=style.dashes,
            linewidth=0.9,
            zorder=1.5,
        )
    return len(steps) > 1


def _mark(
    axes: Axes, points: Sequence[Point], style: drawing.Style, scale: Normalize | None
) -> None:
    x = [-point["excess"] for point in points]
    y = [100 * point["error"] for point in points]
    bars = [drawing.finite(point["deviation"]) for point in points]
    axes.errorbar(x, y, xerr=bars, fmt="none", ecolor=drawing.GREY, elinewidth=1, zorder=2)
    draw = functools.partial(axes.scatter, marker=style.marker, s=_AREA, zorder=3)
    if scale is None:  # Without students, the series set the colours.
        draw(x, y, facecolor=style.color, edgecolor="black", linewidth=0.7)
        return
    colored = [index for index, p in enumerate(points) if drawing.is_finite(p["student"])]
    others = [index for index in range(len(points)) if index not in colored]
    draw(
        [x[index] for index in colored],
        [y[index] for index in colored],
        c=[100 * points[index]["student"] for index in colored],
        cmap=_MAP,
        norm=scale,
        edgecolor="black",
        linewidth=0.7,
    )
    draw(
        [x[index] for index in others],
        [y[index] for index in others],
        facecolor="none",
        edgecolor="#999999",
        linewidth=1.2,
    )


def _handle(label: str, style: drawing.Style) -> Line2D:
    appearance = {"color": style.color, "marker": style.marker, "linestyle": style.dashes}
    return Line2D([], [], linewidth=0.9, label=label, **appearance)


def _front(axes: Axes, front: Sequence[Point]) -> None:
    """Draws the Pareto front, and the labels of its points where they fit."""
    x = [-point["excess"] for point in front]
    y = [100 * point["error"] for point in front]
    axes.margins(0.1)
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.plot(
        [left, *x, x[-1]],
        [y[0], *y, high],
        drawstyle="steps-pre",
        color="#D55E00",
        linewidth=1.3,
        zorder=1,
        label="Pareto front",
    )
    labelled: list[tuple[float, float]] = []
    for point, point_x, point_y in zip(front, x, y, strict=True):
        position = ((point_x - left) / (right - left), (point_y - low) / (high - low))
        if point["label"] and all(
            abs(position[0] - other[0]) > _APART[0] or abs(position[1] - other[1]) > _APART[1]
            for other in labelled
        ):
            labelled.append(position)
            is_right = position[0] > 0.7
            axes.annotate(
                drawing.label(point["label"], 18),
                (point_x, point_y),
                xytext=(-6 if is_right else 6, -6),
                textcoords="offset points",
                ha="right" if is_right else "left",
                va="top",
                fontsize=drawing.SMALL,
                zorder=2.5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
            )


@drawing.styled
def pruning(points: Sequence[Point], *, title: str, name: str) -> drawing.Drawing | None:
    """Draws the effect of pruning a teacher's topmost blocks, in up to three panels.

    Args:
        points: For each teacher, "series" (what was pruned), "pruned" (number of blocks), and
            "error", "excess", "deviation" and "student" as for `information_plane`, or None.
        title: Title of the figure.
        name: Stem of the file names.

    Returns:
        The figure; None if there is nothing to draw.
    """
    panels = [panel for panel in _PANELS if any(drawing.is_finite(p[panel[0]]) for p in points)]
    if not panels:
        return None
    width = 3.3 * len(panels) if len(panels) > 1 else drawing.SIZE[0]
    figure = drawing.new(columns=len(panels), size=(width, 3.5))
    styles = drawing.styles(point["series"] for point in points)
    labels = drawing.labels(styles)
    pruned = [point["pruned"] for point in points]
    for axes, (field, factor, y_label) in zip(figure.axes, panels, strict=True):
        axes.set(xlabel="Blocks pruned from the top", ylabel=y_label)
        axes.set_xlim(min(pruned) - 0.5, max(pruned) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        for (series, style), label in zip(styles.items(), labels, strict=True):
            in_series = sorted(
                (p for p in points if p["series"] == series and drawing.is_finite(p[field])),
                key=lambda p: p["pruned"],
            )
            axes.errorbar(
                [point["pruned"] for point in in_series],
                [factor * point[field] for point in in_series],
                [drawing.finite(p["deviation"]) for p in in_series] if field == "excess" else None,
                color=style.color,
                marker=style.marker,
                linestyle=style.dashes,
                capsize=2.5,
                label=label,
            )
    drawing.legend(figure)
    names = ("series", "pruned", "error", "excess", "deviation", "student")
    caption = (
        "The legend names what was pruned from the topmost blocks; a pruned module leaves its "
        "input unchanged."
    )
    if "excess" in {panel[0] for panel in panels}:
        caption += (
            " Information is minus the reconstruction loss above its lower bound; bars: one sample "
            "standard deviation over seeds of the decoder."
        )
    missing = sum(not any(drawing.is_finite(p[panel[0]]) for panel in panels) for p in points)
    return drawing.Drawing(
        name,
        title,
        caption + drawing.left_out(missing, "Points"),
        figure,
        names,
        list(drawing.fields(points, names)),
    )


# Field, factor, label.
_PANELS = (
    ("error", 100.0, _ERROR),
    ("excess", -1.0, "Information, nats per sub-pixel"),
    ("student", 100.0, "Best student's accuracy, %"),
)
