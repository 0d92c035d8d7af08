"""The information plane of a run: figure and table."""

from collections.abc import Iterator

from remem_jax.report import information, tables
from remem_jax.report.figures import drawing, information_plane


def figures(results: tables.Results) -> Iterator[drawing.Drawing]:
    """Draws the information plane of a run's teachers, if their information was measured."""
    points = [
        {**point, "series": tables.method_title(point["method"]), "label": f"step {point['step']}"}
        for point in information.points(results)
    ]
    plane = information_plane.information_plane(
        points,
        title="Information plane",
        name="information_plane",
        caption=f"Teachers on the validation images of {results['data']['title']}.",
    )
    if plane is not None:
        yield plane


def table(results: tables.Results) -> tables.Table | None:
    """Builds the table of the teachers' information; None if it was not measured."""
    return information.table(
        information.points(results),
        lambda point: (tables.method_title(point["method"]), str(point["step"])),
    )
