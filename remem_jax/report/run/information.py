"""The information plane of a run: its figure and its table."""

from collections.abc import Iterator

from remem_jax.report import information, tables
from remem_jax.report.figures import drawing, information_plane


def figures(results: tables.Results) -> Iterator[drawing.Drawing]:
    """The information plane of a run's teachers, and how their decoders learned."""
    found = [
        {**point, "series": tables.method_title(point["method"]), "label": f"step {point['step']}"}
        for point in information.points(results)
    ]
    plane = information_plane.information_plane(
        found,
        title="Information plane",
        name="information_plane",
        caption=f"Teachers on the validation images of {results['data']['title']}.",
    )
    if plane is not None:
        yield plane


def table(results: tables.Results) -> tables.Table | None:
    """How much the features of each teacher keep of the image."""
    found = information.points(results)
    return information.table(
        found, lambda point: (tables.method_title(point["method"]), str(point["step"]))
    )
