"""Teachers as points of the information plane: of one run, or of all trials of a study."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax.report import tables
from remem_jax.report.figures import drawing, planes

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


def of_run(results: tables.Results) -> Iterator[drawing.Drawing]:
    """The information plane of a run's teachers, and how their decoders learned."""
    found = [
        {**point, "series": tables.method_title(point["method"]), "label": f"step {point['step']}"}
        for point in points(results)
    ]
    plane = planes.information_plane(
        found,
        title="Information plane",
        name="information_plane",
        caption=f"Teachers on the validation images of {results['data']['title']}.",
    )
    if plane is not None:
        yield plane


def table_of_run(results: tables.Results) -> tables.Table | None:
    """How much the features of each teacher keep of the image."""
    found = points(results)
    return _table(found, lambda point: (tables.method_title(point["method"]), str(point["step"])))


def _table(found: Sequence[Point], named: Any) -> tables.Table | None:
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
                *(decimals(point[name]) for name in ("excess", "deviation", "change")),
                decimals(point["info_nce"], 2),
                tables.percent(point["student"]),
            )
            for point in found
        ),
        note=INFORMATION_NOTE,
    )


INFORMATION_NOTE = (
    "The loss above its floor is in nats per sub-pixel, on images that no decoder was trained on: "
    "the lower, the more the features keep of the image. Behind it stands the sample standard "
    "deviation over seeds of the decoder. “Still to come” is what as many evaluations again as "
    "the last half of them would change, at the slope of these: far from 0 beside the differences "
    "between teachers, the decoders had not come to their end. InfoNCE is a second estimate, of "
    "features through noise (the higher, the more they keep); it is not on the same scale."
)


def decimals(value: float | None, digits: int = 5) -> str:
    """A number with so many decimals."""
    if value is None:
        return tables.NOTHING
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def of_study(study: Mapping[str, Any]) -> Iterator[drawing.Drawing]:
    """Information planes of a study, one for each data set; and what pruning does, where it is.

    Information compares teachers on the same images only.
    """
    for number, (data, found) in enumerate(_by_data(study).items()):
        suffix = f"_{number}" if number else ""
        plane = planes.information_plane(
            found,
            title=f"Information plane: {data}",
            name=f"information_plane{suffix}",
            caption=f"Teachers of all trials, on the validation images of {data}.",
        )
        pruned = planes.pruning(
            _pruned(found),
            title=f"Blocks pruned from the top: {data}",
            name=f"pruning{suffix}",
        )
        yield from (one for one in (plane, pruned) if one is not None)


def table_of_study(study: Mapping[str, Any]) -> tables.Table | None:
    """How much the features of each teacher of a study keep of the image."""
    found = [point for some in _by_data(study).values() for point in some]
    return _table(found, lambda point: (point["series"], str(point["step"])))


def _by_data(study: Mapping[str, Any]) -> dict[str, list[Point]]:
    """The teachers of the trials in full, by the data set that they are of."""
    rows = {row["name"]: row["title"] for row in study["rows"]}
    columns = {column["name"]: column for column in study["columns"]}
    trials = [one for one in study["trials"] if one["fraction"] == 1 and one.get("teachers")]
    has_rows = len({trial["row"] for trial in trials}) > 1
    has_columns = len({trial["column"] for trial in trials}) > 1
    found: dict[str, list[Point]] = {}
    for trial in trials:
        column, row = columns[trial["column"]], rows[trial["row"]]
        names = [row] * (has_rows or not has_columns) + [column["title"]] * has_columns
        of = {
            "series": ", ".join(names),
            "trial": trial["trial"],
            "column": column["title"] if has_columns else "",
        }
        found.setdefault(column["data"]["title"], []).extend(
            {**point, **of, "label": f"step {point['step']}"} for point in trial["teachers"]
        )
    return {data: some for data, some in found.items() if some}


def _pruned(points: Sequence[Point]) -> list[Point]:
    """Of each trial the last teacher, by the kind of block that it lost; without loss, by each."""
    last: dict[str, Point] = {}
    for point in points:
        before = last.get(point["trial"])
        if before is None or before["step"] < point["step"]:
            last[point["trial"]] = point
    kinds = sorted(
        {kind for one in last.values() for kind, count in one["pruned"].items() if count}
    )
    found = []
    for point in last.values():
        own = [kind for kind in kinds if point["pruned"][kind]]
        for kind in own or kinds:
            series = ", ".join(text for text in (kind, point["column"]) if text)
            found.append({**point, "series": series, "pruned": point["pruned"][kind]})
    return found
