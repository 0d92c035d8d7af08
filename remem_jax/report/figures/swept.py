"""Figure of students and teachers against a setting that the grid varies."""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report.figures import drawing

_PANELS = (("student", "Student's accuracy, %"), ("teacher", "Teacher's accuracy, %"))


@drawing.styled
def against(
    points: Sequence[Mapping[str, Any]], *, label: str, title: str, name: str
) -> drawing.Drawing | None:
    """Draws accuracies on validation against the values of a setting.

    Args:
        points: For each series and value, "series", "value", "seeds" (their number), and "student"
            and "teacher": each a mapping with "mean", "low" and "high" (fractions, or None), or
            None.
        label: Title of the setting.
        title: Title of the figure.
        name: Stem of the file names.

    Returns:
        The figure; None if there is nothing to draw.
    """
    panels = [panel for panel in _PANELS if any(point[panel[0]] for point in points)]
    if not panels:
        return None
    width = 4.2 * len(panels) if len(panels) > 1 else drawing.SIZE[0]
    figure = drawing.new(columns=len(panels), size=(width, 3.8))
    styles = drawing.styles(point["series"] for point in points)
    values = sorted({point["value"] for point in points})
    # Values of a grid are often apart by factors: equal distances show each.
    place = {value: index for index, value in enumerate(values)}
    for axes, (role, y_label) in zip(figure.axes, panels, strict=True):
        axes.set(xlabel=label, ylabel=y_label)
        axes.set_xticks(list(place.values()), [f"{value:g}" for value in values])
        labels = drawing.labels(styles)
        for number, ((series, style), text) in enumerate(zip(styles.items(), labels, strict=True)):
            shown = sorted(
                (point for point in points if point["series"] == series and point[role]),
                key=lambda point: point["value"],
            )
            means = [point[role] for point in shown]
            shift = 0.06 * (number - (len(styles) - 1) / 2)  # Intervals do not cover each other.
            axes.errorbar(
                [place[point["value"]] + shift for point in shown],
                [100 * mean["mean"] for mean in means],
                yerr=[
                    [100 * (mean["mean"] - drawing.finite(mean["low"])) for mean in means],
                    [100 * (drawing.finite(mean["high"]) - mean["mean"]) for mean in means],
                ],
                color=style.color,
                marker=style.marker,
                linestyle=style.dashes,
                capsize=2.5,
                label=text,
            )
    drawing.legend(figure)
    fields = ("mean", "low", "high")
    return drawing.Drawing(
        name,
        title,
        "Each mark is the mean over seeds of the best student on validation among all trials with "
        "this value, and of its teacher; bars are 95 % intervals over seeds. The best of several "
        "is biased upwards: the table of results has the accuracies on test.",
        figure,
        (
            *("series", "value", "seeds"),
            *(f"{role}_{field}" for role, _ in _PANELS for field in fields),
        ),
        [
            [
                *(point[field] for field in ("series", "value", "seeds")),
                *((point[role] or {}).get(field) for role, _ in _PANELS for field in fields),
            ]
            for point in points
        ],
    )
