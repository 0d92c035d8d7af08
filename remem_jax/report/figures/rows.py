"""Figure of the rows of a study: their accuracy, and their gain over a baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from remem_jax.report.figures import drawing

_LETTERS = 30  # Of the name of a row.
_ROW = 0.42  # Height of a row, in inches.
_FRAME = 1.1  # Height of axes, labels and margins.
_WIDTH = 8.6


@drawing.styled
def rows(
    rows: Sequence[Mapping[str, Any]], *, baseline: str, title: str, name: str
) -> drawing.Drawing | None:
    """Draws accuracies as marks and gains as bars, both with 95 % intervals over seeds.

    Args:
        rows: For each row, from the top: "row" (its title); "student", the accuracy of each seed;
            "accuracy" with the "mean" of these, and "low" and "high", or None; "gains", the
            difference from the baseline for each seed; and "gain", as "accuracy" of these, or None
            for the baseline itself. All are fractions.
        baseline: Title of the baseline; "" if rows have different ones.
        title: Title of the figure.
        name: Stem of the file names.

    Returns:
        The figure; None with fewer than two rows.
    """
    if len(rows) < 2:
        return None
    figure = drawing.new(columns=2, size=(_WIDTH, _FRAME + _ROW * len(rows)))
    accuracies, gains = figure.axes
    places = list(range(len(rows)))
    accuracies.set(xlabel="Student's accuracy on test, %")
    accuracies.set_yticks(places, drawing.labels((row["row"] for row in rows), _LETTERS))
    over = drawing.label(baseline, _LETTERS) if baseline else "the baseline"
    gains.set(xlabel=f"Gain over {over}, points")
    gains.set_yticks(places, [""] * len(places))
    gains.axvline(0, color="black", linewidth=0.8)
    for axes in figure.axes:
        axes.set_ylim(len(rows) - 0.4, -0.6)  # The first row is at the top.
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
    for place, row in enumerate(rows):
        style = drawing.style("", place)
        _dots(accuracies, row["student"], place)
        _interval(accuracies, row["accuracy"], place, marker="D", color=style.color)
        if row["gain"] is not None:
            width = 100 * row["gain"]["mean"]
            gains.barh(place, width, height=0.55, color=style.color, alpha=0.55)
            _dots(gains, row["gains"], place)
            _interval(gains, row["gain"], place, marker="", color="black")
    names = ("row", "seeds", "mean", "low", "high", "gain_seeds", "gain", "gain_low", "gain_high")
    return drawing.Drawing(
        name,
        title,
        "Left: the mean accuracy of each row. Right: its mean paired difference from the baseline. "
        "Lines are 95 % intervals over seeds, by Student's t distribution; small dots are single "
        "seeds. Intervals on the left include what all rows of a seed share, such as its split: "
        "compare rows by the right panel.",
        figure,
        names,
        [_fields(row) for row in rows],
    )


def _dots(axes: Axes, values: Sequence[float], place: int) -> None:
    axes.scatter(
        [100 * value for value in values],
        [place + 0.3] * len(values),
        s=9,
        color=drawing.GREY,
        zorder=3,
    )


def _interval(axes: Axes, mean: Mapping[str, Any], place: int, *, marker: str, color: str) -> None:
    axes.plot([100 * mean["mean"]], [place], marker=marker, color=color, linestyle="none")
    if mean["low"] is not None:
        axes.errorbar(
            [100 * mean["mean"]],
            [place],
            xerr=[[100 * (mean["mean"] - mean["low"])], [100 * (mean["high"] - mean["mean"])]],
            fmt="none",
            ecolor=color,
            elinewidth=1.4,
            capsize=3.5,
        )


def _fields(row: Mapping[str, Any]) -> list[str | int | float | None]:
    accuracy, gain = row["accuracy"], row["gain"] or {}
    return [
        row["row"],
        len(row["student"]),
        *(accuracy[name] for name in ("mean", "low", "high")),
        len(row["gains"]),
        *(gain.get(name) for name in ("mean", "low", "high")),
    ]
