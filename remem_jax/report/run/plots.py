"""Plots of a run's report, as SVG. The same input gives the same text.

Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; markers and
dashes distinguish the methods in black-and-white print as well.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from remem_jax.report import tables
from remem_jax.report.figures import drawing
from remem_jax.report.figures.drawing import Plot, Style, finite

_RING = 13  # Diameter of the ring around a selected model, in points.


class Curve(NamedTuple):
    """A curve of one method over training steps.

    Attributes:
        method: Name of the method.
        points: Pairs of step and value, ordered by step.
        chosen: Step to mark with a ring, if any.
    """

    method: str
    points: list[tuple[int, float]]
    chosen: int | None = None


_OTHER_STYLE = Style(drawing.GREY, "*", "-")


@drawing.styled
def draw(results: tables.Results, rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Draws all plots for which the run has data.

    Args:
        results: Contents of results.json.
        rows: Logged metrics, as `storage.logs.read` returns them.
    """
    plots = [
        _students_against_teachers(results),
        *_teacher_curves(results, rows),
        *_student_curves(results, rows),
        _ascent_norms(results, rows),
    ]
    return [plot for plot in plots if plot is not None]


def _students_against_teachers(results: tables.Results) -> Plot | None:
    metric, split = results["data"]["metric"], tables.selection(results)
    teachers = {(r["method"], r["step"]): r[split][metric] for r in results["teachers"]}
    left_out = sum(row["diverged"] for row in results["students"])
    figure, axes = _axes(f"Teacher, {split}, %", f"Student, {split}, %")
    for method in _methods(results):
        style = _style(method)
        students = [r for r in _kept(results) if r["method"] == method]
        distilled = [r for r in students if (method, r["teacher_step"]) in teachers]
        x = [100 * finite(teachers[method, r["teacher_step"]]) for r in distilled]
        y = [100 * finite(r[split][metric]) for r in distilled]
        if distilled:
            axes.plot(x, y, style.marker, color=style.color, alpha=0.7, label=_label(method))
        elif students:
            best = 100 * max(finite(r[split][metric]) for r in students)
            label = f"{_label(method)}, best"
            axes.axhline(best, color=style.color, linestyle=style.dashes, label=label)
    for row in results["methods"]:
        if row["teacher"] is not None:
            x, y = (100 * finite(row[m][split][metric]) for m in ("teacher", "student"))
            _ring(axes, x, y, _style(row["method"]))
    caption = (
        "Each point is a student, by its accuracy and that of its teacher; rings mark the selected "
        "models."
    )
    if left_out:
        caption += f" Students left out because they diverged: {left_out}."
    return _finish("Students against their teachers", caption, figure, axes)


def _teacher_curves(
    results: tables.Results, rows: Sequence[Mapping[str, Any]]
) -> Iterable[Plot | None]:
    chosen = {row["method"]: row["selected"]["teacher_step"] for row in results["methods"]}
    split = tables.selection(results)

    def curves(name: str, scale: float, *, ringed: bool) -> list[Curve]:
        return [
            Curve(
                row["method"],
                _series(rows, _teacher_stage(row), name, scale=scale),
                chosen[row["method"]] if ringed else None,
            )
            for row in results["methods"]
        ]

    yield _curves_plot(
        "Teachers: training loss",
        "Cross-entropy of the batch, before SAM's perturbation.",
        "Loss, nats",
        curves("loss", 1.0, ringed=False),
    )
    yield _curves_plot(
        f"Teachers: {split}",
        "Each point is a checkpoint; rings mark the teachers of the selected students.",
        f"{split.capitalize()}, %",
        curves(split, 100.0, ringed=True),
    )


def _student_curves(
    results: tables.Results, rows: Sequence[Mapping[str, Any]]
) -> Iterable[Plot | None]:
    split = tables.selection(results)

    def curves(name: str, scale: float) -> list[Curve]:
        return [
            Curve(
                row["method"],
                _series(
                    rows, row["group"]["part"], name, member=row["group"]["member"], scale=scale
                ),
            )
            for row in results["methods"]
        ]

    yield _curves_plot(
        "Selected students: training loss",
        "The distillation loss of each student. Losses with different temperatures and weights are "
        "on different scales: compare only their shapes.",
        "Loss",
        curves("loss", 1.0),
    )
    yield _curves_plot(
        f"Selected students: {split}",
        "The selected student of each method.",
        f"{split.capitalize()}, %",
        curves(split, 100.0),
    )


def _ascent_norms(results: tables.Results, rows: Sequence[Mapping[str, Any]]) -> Plot | None:
    ascending = [row for row in results["methods"] if (row["teacher_settings"] or {}).get("rho")]
    return _curves_plot(
        "Teachers: norm of SAM's ascent gradient",
        "At the unperturbed parameters, before clipping; only for methods with rho above 0.",
        "Norm",
        [
            Curve(row["method"], _series(rows, _teacher_stage(row), "ascent_norm"))
            for row in ascending
        ],
    )


def _teacher_stage(row: Mapping[str, Any]) -> str:
    """Returns the logged stage of a method's teacher; older runs had one attempt."""
    return row.get("teacher_part") or f"teachers/{row['method']}"


def _series(
    rows: Sequence[Mapping[str, Any]],
    stage: str,
    name: str,
    *,
    member: int | None = None,
    scale: float = 1.0,
) -> list[tuple[int, float]]:
    """Returns pairs of step and value of a metric; `member` picks one student of a group."""
    values = [(row["step"], row[name]) for row in rows if row["part"] == stage and name in row]
    return [
        (step, scale * finite(value if member is None else value[member])) for step, value in values
    ]


def _methods(results: tables.Results) -> list[str]:
    return [row["method"] for row in results["methods"]]


def _kept(results: tables.Results) -> list[Mapping[str, Any]]:
    return [row for row in results["students"] if not row["diverged"]]


def _style(method: str) -> Style:
    return drawing.METHODS.get(method, _OTHER_STYLE)


def _label(method: str) -> str:
    return tables.printable(tables.method_title(method))


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=drawing.SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _curves_plot(title: str, caption: str, y_label: str, curves: list[Curve]) -> Plot | None:
    figure, axes = _axes("Step", y_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=True))
    for method, points, chosen in curves:
        if not points:
            continue
        style = _style(method)
        axes.plot(
            *zip(*points, strict=True),
            color=style.color,
            linestyle=style.dashes,
            marker=style.marker,
            markevery=max(1, len(points) // 8),
            label=_label(method),
        )
        for step, value in points:
            if step == chosen:
                _ring(axes, step, value, style)
    return _finish(title, caption, figure, axes)


def _ring(axes: Axes, x: float, y: float, style: Style) -> None:
    axes.plot([x], [y], "o", color=style.color, fillstyle="none", markersize=_RING)


def _finish(title: str, caption: str, figure: Figure, axes: Axes) -> Plot | None:
    """Returns the plot with its legend, or None if nothing was drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return None
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return Plot(title, caption, drawing.svg(figure, re.sub(r"\W+", "_", title.lower())))
