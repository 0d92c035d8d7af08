"""Figures of students' accuracy against measures of their teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from remem_jax.report.figures import drawing

_PANELS_IN_ROW = 3
_LEAST = 3  # Points in a panel.
_AREA = 32  # Area of a marker, in square points.


@drawing.styled
def students(
    points: Sequence[Mapping[str, Any]],
    measures: Sequence[tuple[str, str]],
    *,
    title: str,
    name: str,
) -> drawing.Drawing | None:
    """Draws the accuracy of the best student of each teacher against measures of the teacher.

    Args:
        points: For each teacher, "series", "seed", "step", "student" (the accuracy of its best
            student, a fraction), and each measure, or None.
        measures: Names of measures, and their titles; one panel each.
        title: Title of the figure.
        name: Stem of the file names.

    Returns:
        The figure; None if no measure has three points.
    """
    shown = [
        (measure, label)
        for measure, label in measures
        if sum(drawing.is_finite(point[measure]) for point in points) >= _LEAST
    ]
    if not shown:
        return None
    across = min(len(shown), _PANELS_IN_ROW)
    down = -(-len(shown) // across)
    size = (3.4 * across if across > 1 else drawing.SIZE[0], 3.4 * down)
    figure = drawing.new(rows=down, columns=across, size=size, share=False)
    styles = drawing.styles(point["series"] for point in points)
    labels = drawing.labels(styles)
    for axes, (measure, label) in zip(figure.axes, shown, strict=False):
        axes.set(xlabel=label, ylabel="Best student's accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        for (series, style), text in zip(styles.items(), labels, strict=True):
            chosen = [p for p in points if p["series"] == series and drawing.is_finite(p[measure])]
            axes.scatter(
                [point[measure] for point in chosen],
                [100 * point["student"] for point in chosen],
                marker=style.marker,
                s=_AREA,
                facecolor=style.color,
                edgecolor="black",
                linewidth=0.5,
                zorder=3,
                label=text,
            )
    for axes in figure.axes[len(shown) :]:
        axes.set_visible(False)
    drawing.legend(figure)
    names = ("series", "seed", "step", *(measure for measure, _ in shown), "student")
    return drawing.Drawing(
        name,
        title,
        "Each mark is a teacher, a checkpoint of a trial, with the accuracy of its best student; "
        "accuracies are those on validation.",
        figure,
        names,
        list(drawing.fields(points, names)),
    )
