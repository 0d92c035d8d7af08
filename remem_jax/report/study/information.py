"""The information planes of a study: figures and table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remem_jax.report import information, tables
from remem_jax.report.figures import drawing, information_plane
from remem_jax.report.information import Point


def figures(study: Mapping[str, Any]) -> Iterator[drawing.Drawing]:
    """Draws the information plane of each data set, and the effect of pruning if there is any.

    Information is comparable only between teachers on the same images.
    """
    for number, (data, points) in enumerate(_by_data(study).items()):
        suffix = f"_{number}" if number else ""
        plane = information_plane.information_plane(
            points,
            title=f"Information plane: {data}",
            name=f"information_plane{suffix}",
            caption=f"Teachers of all trials, on the validation images of {data}.",
        )
        pruned = information_plane.pruning(
            _pruned(points),
            title=f"Blocks pruned from the top: {data}",
            name=f"pruning{suffix}",
        )
        yield from (figure for figure in (plane, pruned) if figure is not None)


def table(study: Mapping[str, Any]) -> tables.Table | None:
    """Builds the table of the teachers' information; None if it was not measured."""
    points = [point for teachers in _by_data(study).values() for point in teachers]
    return information.table(points, lambda point: (point["series"], str(point["step"])))


def _by_data(study: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Returns the teachers of fully trained trials, by data set."""
    rows = {row["name"]: row["title"] for row in study["rows"]}
    columns = {column["name"]: column for column in study["columns"]}
    trials = [
        trial for trial in study["trials"] if trial["fraction"] == 1 and trial.get("teachers")
    ]
    has_rows = len({trial["row"] for trial in trials}) > 1
    has_columns = len({trial["column"] for trial in trials}) > 1
    by_data: dict[str, list[Point]] = {}
    for trial in trials:
        column, row = columns[trial["column"]], rows[trial["row"]]
        names = [row] * (has_rows or not has_columns) + [column["title"]] * has_columns
        described = {
            "series": ", ".join(names),
            "trial": trial["trial"],
            "column": column["title"] if has_columns else "",
        }
        by_data.setdefault(column["data"]["title"], []).extend(
            {**point, **described, "label": f"step {point['step']}"} for point in trial["teachers"]
        )
    return {data: points for data, points in by_data.items() if points}


def _pruned(points: Sequence[Point]) -> list[Point]:
    """Returns each trial's last teacher once per kind of pruning; unpruned ones have all kinds."""
    last: dict[str, Point] = {}
    for point in points:
        latest = last.get(point["trial"])
        if latest is None or latest["step"] < point["step"]:
            last[point["trial"]] = point
    kinds = sorted(
        {kind for point in last.values() for kind, count in point["pruned"].items() if count}
    )
    pruned_points = []
    for point in last.values():
        pruned = [kind for kind in kinds if point["pruned"][kind]]
        for kind in pruned or kinds:
            series = ", ".join(text for text in (kind, point["column"]) if text)
            pruned_points.append({**point, "series": series, "pruned": point["pruned"][kind]})
    return pruned_points
