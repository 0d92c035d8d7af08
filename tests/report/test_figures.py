"""The paper's figures: their contents and files."""

import collections
import csv
import io
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import hypothesis
import jinja2
import numpy as np
import pytest
from hypothesis import strategies
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from scipy import stats

from remem_jax.report import rendering
from remem_jax.report.figures import (
    drawing,
    expertness,
    information_plane,
    neurons,
    reconstructions,
)

HOSTILE = "<script>alert(1)</script> $x$\n$\\frac{$ \U0001f600 \u202e\x01\udcff"
VISIBLE = "<script>alert(1)</script> $x$"  # The part of it that fits into every label.

NUMBERS = strategies.one_of(
    strategies.none(),
    strategies.sampled_from([math.nan, math.inf]),
    strategies.integers(0, 4).map(lambda number: number / 4),  # Few, so that many are equal.
)


def _point(series: str, step: int | None, error: Any, excess: Any, **others: Any) -> dict[str, Any]:
    label = f"step {step}"
    point = {"series": series, "label": label, "step": step, "error": error, "excess": excess}
    return {**point, "deviation": None, "student": None, **others}


POINTS = [
    _point("finetune", 100, 0.5, 0.1, deviation=0.01, student=0.6),
    _point("finetune", 0, 0.9, 0.05, deviation=0.02),
    _point(HOSTILE, 100, 1 / 3, 0.2, student=0.7),
    _point(HOSTILE, 0, 0.6, 0.3),
    _point(HOSTILE, None, None, 0.3),
    _point(HOSTILE, None, 0.6, math.nan),
]
PRUNED = [
    {"series": series, "pruned": k, "error": 0.1 + k / 7, "excess": 0.3, "deviation": 0.01}
    | {"student": None}
    for series in ("MLP blocks", HOSTILE)
    for k in (3, 0, 1)
]
LAYERS = [
    {
        "title": title,
        "layers": [
            {"layer": 1, "shares": [0.5, 0.7], "null_mean": 0.2, "null_deviation": 0.05}
            | {"sparsity": 0.9},
            {"layer": 0, "shares": [0.3], "null_mean": 0.1, "null_deviation": None}
            | {"sparsity": None},
        ],
    }
    for title in ("weak", HOSTILE)
]
BLOCKS = [
    {"model": "weak", "layer": 11, "values": [0.1, 0.7, 0.0, 0.7, math.nan]},
    {"model": HOSTILE, "layer": 0, "values": np.array([1e-5, 1.0, 0.1], np.float32)},
]
CURVES = [
    {
        "title": title,
        "seeds": [
            {"seed": seed, "curve": [[0, 0.9], [10, 0.6 + seed / 10], [20, math.nan]]}
            for seed in (0, 1)
        ],
    }
    for title in ("weak", HOSTILE)
]
SETTINGS = [
    {
        "label": label,
        "models": [
            {"title": "weak", "excess": 0.2, "deviation": 0.01},
            {"title": HOSTILE, "excess": excess, "deviation": None},
        ],
    }
    for label, excess in (("rate 0.001", 0.1), (HOSTILE, 1 / 3), ("rate 1", None))
]


def _picture(place: int) -> np.ndarray:
    return np.random.default_rng(place).random((6, 6, 3), dtype=np.float32)


NEURONS = [
    {
        "neuron": 40 + place,
        "criticality": 0.5 / (1 + place),
        "visualisations": [_picture(10 * place + seed) for seed in range(seeds)],
        "images": [
            {"image": _picture(100 + place), "class": name, "influence": 1 / 3}
            for name in ("cat", HOSTILE)
        ],
    }
    for place, seeds in enumerate((2, 0))
]
PICTURES = [
    {
        "image": _picture(place),
        "class": HOSTILE,
        "models": [
            {"title": title, "reconstruction": 2 * _picture(5), "loss": 0.6, "excess": 1 / 3}
            for title in ("weak", HOSTILE)[: 2 - place]
        ],
    }
    for place in (0, 1)
]
MAPS = [
    {"title": "weak", "pixels": np.array([[0.1, 1 / 3], [0.3, math.nan]])},
    {"title": HOSTILE, "pixels": np.array([[-0.2, 0.0], [0.1, 0.2]])},
]


def _drawings() -> list[drawing.Drawing]:
    drawn = [
        information_plane.information_plane(POINTS, title=HOSTILE, name="plane", caption=HOSTILE),
        information_plane.pruning(PRUNED, title="Pruning", name="pruning"),
        expertness.expertness(LAYERS, clusters=4, threshold=0.1),
        neurons.criticality(BLOCKS, name="critical", title="Criticality"),
        neurons.grid(NEURONS, name="neurons", title="Neurons"),
        reconstructions.pictures(PICTURES, name="pictures", title="Pictures"),
        reconstructions.maps(MAPS, name="maps", title="Maps"),
        reconstructions.curves(CURVES, name="curves", title="Curves"),
        reconstructions.sensitivity(SETTINGS, name="sensitivity", title="Settings"),
    ]
    return [figure for figure in drawn if figure is not None]


Saved = tuple[pathlib.Path, dict[str, drawing.Drawing], dict[str, drawing.Plot]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folder, drawings by name and plots by name."""
    folder = tmp_path_factory.mktemp("figures")
    drawn = {figure.name: figure for figure in _drawings()}
    return folder, drawn, {name: drawing.save(folder, figure) for name, figure in drawn.items()}


def _table(folder: pathlib.Path, name: str) -> list[dict[str, str]]:
    text = (folder / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _number(text: str) -> float | None:
    return float(text) if text else None


def test_each_drawing_becomes_three_files_and_nothing_else(saved: Saved) -> None:
    folder, drawn, _ = saved

    expected = {f"{name}.{end}" for name in drawn for end in ("png", "svg", "csv")}
    assert len(drawn) == 9
    assert {path.name for path in folder.iterdir()} == expected


def test_every_svg_is_well_formed_and_has_no_script(saved: Saved) -> None:
    folder, drawn, plots = saved

    for name in drawn:
        for text in (plots[name].svg, (folder / f"{name}.svg").read_text(encoding="utf-8")):
            tags = {element.tag.split("}")[-1] for element in ElementTree.fromstring(text).iter()}
            assert not {"script", "a", "foreignObject"} & tags


def test_hostile_names_are_text(saved: Saved) -> None:
    texts = {
        name: " ".join(ElementTree.fromstring(plot.svg).itertext())
        for name, plot in saved[2].items()
    }

    for name in ("plane", "pruning", "expertness", "critical", "curves", "maps", "sensitivity"):
        # The space for a name differs; it is smallest beside a map.
        assert VISIBLE[:19] in texts[name]
    for name in ("neurons", "pictures"):
        assert "<script>alert(" in texts[name]


def test_identifiers_are_unique_and_references_resolve(saved: Saved) -> None:
    page = "".join(plot.svg for plot in saved[2].values())

    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }


def test_pictures_inside_an_svg_are_in_the_file_itself(saved: Saved) -> None:
    links = re.findall(r'<image[^>]*?href="([^"]{0,30})', saved[2]["neurons"].svg)

    assert len(links) == 6
    assert all(link.startswith("data:image/png;base64,") for link in links)


def test_the_same_input_gives_the_same_bytes(saved: Saved, tmp_path: pathlib.Path) -> None:
    folder, drawn, plots = saved
    names = ("plane", "neurons")

    again = {d.name: drawing.save(tmp_path, d) for d in _drawings() if d.name in names}
    twice = drawing.save(tmp_path / "twice", drawn["plane"])

    assert twice == plots["plane"]
    for name in names:
        assert again[name] == plots[name]
        for end in ("png", "svg", "csv"):
            path = f"{name}.{end}"
            assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_a_failed_drawing_leaves_the_files_unchanged(saved: Saved, tmp_path: pathlib.Path) -> None:
    class Broken(Figure):
        def savefig(self, *args: Any, **options: Any) -> None:
            raise ZeroDivisionError

    (tmp_path / "plane.csv").write_text("old")

    with pytest.raises(ZeroDivisionError):
        drawing.save(tmp_path, saved[1]["plane"]._replace(figure=Broken()))

    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_page_takes_the_plots_and_escapes_their_titles(saved: Saved) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("remem_jax.report", "."), autoescape=True
    )
    template = '{% from "templates/figure.html.jinja" import figures %}{{ figures(plots) }}'

    page = environment.from_string(template).render(plots=list(saved[2].values()))

    assert page.count("<figure") == page.count("<svg") == 9
    assert page.count('class="broad"') == sum(plot.wide for plot in saved[2].values())
    assert "<script" not in page


def test_pages_allow_only_embedded_pictures() -> None:
    page = rendering.html("templates/frame.html.jinja", {"title": "Figures"})

    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.group(1).split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
    }


def test_styles_differ_without_colours() -> None:
    looks = [
        (style.marker, str(style.dashes)) for style in (drawing.style("", i) for i in range(65))
    ]

    assert len(set(looks)) == 65


def test_methods_keep_their_style_and_their_marker() -> None:
    by_name = drawing.styles(["a", "remem", "b", "finetune", "c", "a"])

    assert list(by_name) == ["a", "remem", "b", "finetune", "c"]
    assert by_name["remem"] == drawing.METHODS["remem"] == drawing.style("remem", 5)
    assert len({style.marker for style in by_name.values()}) == 5


def test_names_shortened_to_the_same_text_are_numbered() -> None:
    names = ["a" * 60 + "b", "a" * 60 + "c", "a" * 60 + "c", "remem", "d"]

    shortened = drawing.labels(names, 12)

    assert shortened == ["a" * 11 + "…", "a" * 7 + "… (2)", "a" * 7 + "… (3)", "ReMem", "d"]


@hypothesis.given(strategies.lists(strategies.tuples(NUMBERS, NUMBERS), max_size=12))
def test_no_point_dominates_the_front(pairs: list[tuple[float | None, float | None]]) -> None:
    points = [{"error": error, "excess": excess} for error, excess in pairs]
    finite = [
        (error, excess, place)
        for place, (error, excess) in enumerate(pairs)
        if error is not None and excess is not None and math.isfinite(error + excess)
    ]
    beaten = {
        place
        for error, excess, place in finite
        for other in finite
        if other[0] <= error and other[1] <= excess and other[:2] != (error, excess)
    }

    front = information_plane.pareto_front(points)

    assert len(set(front)) == len(front)
    assert set(front) == {place for *_, place in finite} - beaten
    errors = [pairs[place][0] or 0.0 for place in front]
    assert errors == sorted(errors)


def test_plane_has_each_point_once_and_counts_omitted_ones(saved: Saved) -> None:
    plane = saved[1]["plane"]

    marks = [
        tuple(place)
        for points in plane.figure.axes[0].collections
        if isinstance(points, PathCollection)
        for place in np.asarray(points.get_offsets()).tolist()
    ]
    expected = [(-p["excess"], 100 * p["error"]) for p in POINTS[:4]]
    assert collections.Counter(marks) == collections.Counter(expected)
    assert "Points left out because they are not finite: 2." in plane.caption


def test_plane_connects_the_points_of_a_series_in_the_order_of_steps(saved: Saved) -> None:
    lines = [line.get_xydata() for line in saved[1]["plane"].figure.axes[0].get_lines()]

    joined = [[-0.05, 90.0], [-0.1, 50.0]]
    assert sum(np.array_equal(line, joined) for line in lines) == 1


def test_plane_writes_its_numbers_in_full(saved: Saved) -> None:
    table = _table(saved[0], "plane")

    assert [row["on_front"] for row in table] == ["1", "1", "1", "0", "0", "0"]
    for field in ("step", "error", "excess", "deviation", "student"):
        written = [_number(row[field]) for row in table]
        expected = [None if point[field] is None else float(point[field]) for point in POINTS]
        assert repr(written) == repr(expected)  # NaN does not equal itself.


def test_plane_without_students_has_no_scale_of_colours() -> None:
    plane = information_plane.information_plane(
        [_point("sam", None, 0.5, 0.1)], title="Plane", name="plane", caption=""
    )

    assert plane is not None
    assert len(plane.figure.axes) == 1
    assert "student" not in plane.caption


def test_pruning_leaves_out_the_panel_that_has_no_data(saved: Saved) -> None:
    figure = saved[1]["pruning"].figure

    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["Teacher's error, %", "Information, nats per sub-pixel"]
    for axes in figure.axes:
        curves = [bars.lines[0] for bars in axes.containers]  # type: ignore[attr-defined]
        assert [list(line.get_xdata()) for line in curves] == [[0, 1, 3]] * 2


def test_null_model_has_a_band_of_two_deviations(saved: Saved) -> None:
    upper = saved[1]["expertness"].figure.axes[0]

    edges = upper.collections[1].get_paths()[0].vertices  # After the bars of the first model.
    second = np.unique(np.asarray(edges)[np.asarray(edges)[:, 0] == 2][:, 1])
    np.testing.assert_allclose(second, [0.2 - 2 * 0.05, 0.2 + 2 * 0.05])


def test_expertness_writes_each_seed_of_each_block(saved: Saved) -> None:
    table = _table(saved[0], "expertness")

    written = [
        (row["block"], row["seed_place"], row["expertness"], row["sparsity"]) for row in table
    ]
    once = [("2", "0", "0.5", "0.9"), ("2", "1", "0.7", "0.9"), ("1", "0", "0.3", "")]
    assert written == 2 * once


def test_criticality_writes_every_neuron_by_its_rank(saved: Saved) -> None:
    table = _table(saved[0], "critical")

    for block in BLOCKS:
        values = np.asarray(block["values"])
        finite = np.flatnonzero(np.isfinite(values)).tolist()
        ranks = stats.rankdata(-values[finite], method="ordinal")
        rows = {int(r["neuron"]): r for r in table if r["block"] == str(block["layer"] + 1)}
        assert sorted(rows) == list(range(len(values)))
        assert [int(rows[n]["rank"]) for n in finite] == ranks.tolist()
        assert [float(rows[n]["criticality"]) for n in finite] == values[finite].tolist()
    caption = saved[1]["critical"].caption
    assert "Zeros, which this scale cannot show: 1." in caption
    assert "Neurons left out because they are not finite: 1." in caption


def _images(drawn: drawing.Drawing) -> list[np.ndarray]:
    return [
        np.asarray(image.get_array())
        for axes in drawn.figure.axes
        for image in axes.get_images()
        if isinstance(image, AxesImage)
    ]


def test_grid_has_each_picture_once_in_order(saved: Saved) -> None:
    pictures = _images(saved[1]["neurons"])

    expected = [
        picture
        for neuron in NEURONS
        for picture in (*neuron["visualisations"], *(entry["image"] for entry in neuron["images"]))
    ]
    assert len(pictures) == len(expected)
    for ours, picture in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(ours / 255, picture, atol=0.5 / 255 + 1e-6)


def test_columns_of_a_grid_align_if_a_neuron_has_no_visualisation(saved: Saved) -> None:
    lefts = [round(axes.get_position().x0, 6) for axes in saved[1]["neurons"].figure.axes]

    assert lefts[-2:] == lefts[2:4]
    assert len(set(lefts)) == 4


def test_pictures_are_clipped_to_0_and_1(saved: Saved) -> None:
    pictures = _images(saved[1]["pictures"])

    assert len(pictures) == 5  # Two originals, three reconstructions.
    np.testing.assert_allclose(
        pictures[1] / 255, np.minimum(2 * _picture(5), 1), atol=0.5 / 255 + 1e-6
    )


def test_maps_are_on_one_scale(saved: Saved) -> None:
    maps = saved[1]["maps"].figure.axes[:2]

    assert [axes.get_images()[0].get_clim() for axes in maps] == [(-0.2, 1 / 3)] * 2
    written = {(r["model"], r["row"], r["column"]): r["excess"] for r in _table(saved[0], "maps")}
    assert len(written) == 8
    assert written["weak", "0", "1"] == repr(1 / 3)


def test_there_is_a_curve_for_each_seed_and_a_label_for_each_model(saved: Saved) -> None:
    figure = saved[1]["curves"].figure

    lines = figure.axes[0].get_lines()
    assert [line.get_color() for line in lines[::2]] == [line.get_color() for line in lines[1::2]]
    assert len(lines) == 4
    assert len(figure.legends[0].get_texts()) == 2
    rows = saved[1]["curves"].rows
    assert [row[1:] for row in rows[3:5]] == [[1, 0, 0.9], [1, 10, 0.7]]


def test_sensitivity_has_a_row_for_each_setting(saved: Saved) -> None:
    drawn = saved[1]["sensitivity"]

    ours, other = (bars.lines[0] for bars in drawn.figure.axes[0].containers)  # type: ignore[attr-defined]
    assert list(ours.get_xdata()) == [0.2, 0.2, 0.2]
    assert list(other.get_xdata()) == [0.1, 1 / 3]
    assert [round(place) for place in other.get_ydata()] == [0, 1]
    assert "finite: 1." in drawn.caption


@pytest.mark.parametrize(
    "drawn",
    [
        information_plane.information_plane(POINTS[4:], title="", name="x"),
        information_plane.pruning([], title="", name="x"),
        expertness.expertness([{"title": "", "layers": []}], clusters=2, threshold=0.1),
        expertness.expertness(
            [{"title": "", "layers": [{"layer": 0, "shares": [], "sparsity": None}]}],
            clusters=2,
            threshold=0.1,
        ),
        neurons.criticality([{"model": "", "layer": 0, "values": []}], name="x", title=""),
        neurons.grid([], name="x", title=""),
        reconstructions.pictures([], name="x", title=""),
        reconstructions.maps([], name="x", title=""),
        reconstructions.curves([{"title": "", "seeds": []}], name="x", title=""),
        reconstructions.sensitivity([], name="x", title=""),
    ],
)
def test_there_is_no_figure_without_data(drawn: Mapping[str, Any] | None) -> None:
    assert drawn is None
