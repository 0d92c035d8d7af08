"""How much of the image teachers' features keep, for the reports of runs and studies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remem_jax.report import tables

Point = dict[str, Any]


def points(results: tables.Results) -> list[Point]:
    """Returns the teachers of a run whose information was measured, with validation metrics.

    Returns:
        For each teacher: "method", "step", "error", "excess", "deviation", "change" (the expected
        change of the excess if training went on for as many evaluations again, at the slope of
        the last ones), "info_nce", and "student", the accuracy of its best student, or None if all
        diverged.
    """
    metric = results["data"]["metric"]
    return [
        {
            "method": row["method"],
            "step": row["step"],
            "error": None if row["validation"][metric] is None else 1 - row["validation"][metric],
            "excess": row["information"]["excess"],
            "deviation": row["information"]["deviation"],
            "change": row["information"]["slope"] * row["information"]["last"],
            "info_nce": (row["information"]["info_nce"] or {}).get("bound"),
            "student": best_student(results, row),
        }
        for row in results["teachers"]
        if row.get("information")
    ]


def best_student(results: tables.Results, teacher: Mapping[str, Any]) -> float | None:
    """Returns the accuracy on validation of a teacher's best student; None if all diverged."""
    metric = results["data"]["metric"]
    accuracies = [
        row["validation"][metric]
        for row in results["students"]
        if (row["method"], row["teacher_step"]) == (teacher["method"], teacher["step"])
        and not row["diverged"]
    ]
    return max((value for value in accuracies if value is not None), default=None)


def table(
    teachers: Sequence[Point], named: Callable[[Point], tuple[str, str]]
) -> tables.Table | None:
    """Builds the table of teachers; `named` returns the first two cells of a row."""
    if not teachers:
        return None
    return tables.Table(
        "Information of the teachers, on validation",
        (
            "Method",
            "Step",
            "Error, %",
            "Reconstruction loss above its lower bound",
            "±",
            "Remaining change",
            "InfoNCE, nats",
            "Best student, %",
        ),
        tuple(
            (
                *named(point),
                tables.percent(point["error"]),
                *(tables.decimals(point[name]) for name in ("excess", "deviation", "change")),
                tables.decimals(point["info_nce"], 2),
                tables.percent(point["student"]),
            )
            for point in teachers
        ),
        note=NOTE,
    )


NOTE = (
    "The reconstruction loss above its lower bound is in nats per sub-pixel, on images that no "
    "decoder was trained on; a lower value means that the features keep more of the image. ± is "
    "the sample standard deviation over seeds of the decoder. “Remaining change” extrapolates the "
    "slope of the last half of the evaluations over as many evaluations again; if it is not small "
    "compared with the differences between teachers, the decoders have not converged. InfoNCE is "
    "a second estimate, from noisy features, on another scale; a higher value means that they "
    "keep more."
)
