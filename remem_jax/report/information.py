"""How much of the image the features of teachers keep: what the pages of runs and studies share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remem_jax.report import tables

Point = dict[str, Any]


def points(results: tables.Results) -> list[Point]:
    """The teachers of a run whose information was measured, on validation.

    Returns:
        For each "method", "step", "error", "excess", "deviation", "change" (of the excess by as
        many evaluations again, at the slope of the last ones), "info_nce", and "student", the
        accuracy of its best student; None if all diverged.
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
            "student": _best(results, row),
        }
        for row in results["teachers"]
        if row.get("information")
    ]


def _best(results: tables.Results, teacher: Mapping[str, Any]) -> float | None:
    metric = results["data"]["metric"]
    own = [
        row["validation"][metric]
        for row in results["students"]
        if (row["method"], row["teacher_step"]) == (teacher["method"], teacher["step"])
        and not row["diverged"]
    ]
    return max((value for value in own if value is not None), default=None)


def table(found: Sequence[Point], named: Callable[[Point], tuple[str, str]]) -> tables.Table | None:
    """How much the features of each teacher keep of the image; `named` gives its first cells."""
    if not found:
        return None
    return tables.Table(
        "Information of the teachers, on validation",
        (
            "Method",
            "Step",
            "Error, %",
            "Reconstruction loss above its floor",
            "±",
            "Still to come",
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
            for point in found
        ),
        note=NOTE,
    )


NOTE = (
    "The loss above its floor is in nats per sub-pixel, on images that no decoder was trained on: "
    "the lower, the more the features keep of the image. Behind it stands the sample standard "
    "deviation over seeds of the decoder. “Still to come” is what as many evaluations again as "
    "the last half of them would change, at the slope of these: far from 0 beside the differences "
    "between teachers, the decoders had not come to their end. InfoNCE is a second estimate, of "
    "features through noise (the higher, the more they keep); it is not on the same scale."
)
