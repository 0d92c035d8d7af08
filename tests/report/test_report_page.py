"""The two files of a report are complete, safe to open and reproducible."""

import html.parser
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from remem_jax import checks, report
from remem_jax.report.run import plots

HOSTILE = '<script>alert("1")</script> $\\frac{$ | `x` \u202e\x01\udcff\nnext [a](http://evil) _b_'


class Page(html.parser.HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        """Reads the text."""
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def write(run: pathlib.Path, results: dict[str, Any]) -> Callable[[], tuple[str, str]]:
    """Returns a function that writes the report of `results` and returns HTML and Markdown."""

    def write_and_read() -> tuple[str, str]:
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
        report.write(run)
        page = (run / "report.html").read_text(encoding="utf-8")
        return page, (run / "report.md").read_text(encoding="utf-8")

    return write_and_read


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[str, str]]:
    """The HTML and the Markdown of each report that was written, by its results."""
    return {}


@pytest.fixture
def read(
    write: Callable[[], tuple[str, str]],
    written: dict[str, tuple[str, str]],
    results: dict[str, Any],
) -> Callable[[], tuple[str, str]]:
    """Like `write`, but writes each report once, for tests that change nothing else."""

    def write_once() -> tuple[str, str]:
        key = json.dumps(results)
        if key not in written:
            written[key] = write()
        return written[key]

    return write_once


@pytest.fixture
def hostile(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with a hostile name wherever a stranger could put one."""
    results["title"] = HOSTILE
    results["data"] |= {"title": HOSTILE, "class_names": [HOSTILE, "one"], "skipped": [HOSTILE]}
    results["config"]["data"] = {"path": HOSTILE}
    results["config"]["differs"] = [HOSTILE]
    results["models"]["init"] = HOSTILE
    results["methods"][2]["student"]["test"]["confused"][0] |= {"class": HOSTILE}
    results["methods"][2]["student"]["test"]["confused"][1] |= {"taken_for": HOSTILE}
    results["methods"][1]["method"] = HOSTILE
    for row in (results["teachers"][0], results["students"][2], results["students"][3]):
        row["method"] = HOSTILE
    return results


def _svgs(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def _markdown_tables(text: str) -> list[list[str]]:
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [block.splitlines() for block in blocks]


def _columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_page_runs_no_script_and_requests_nothing(
    read: Callable[[], tuple[str, str]], hostile: dict[str, Any]
) -> None:
    page = Page(read()[0])

    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name.split(":")[-1] in ("src", "href")]
    assert all(link.startswith("#") for link in links)
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


def test_hostile_names_are_text_in_the_page(
    read: Callable[[], tuple[str, str]], hostile: dict[str, Any]
) -> None:
    page = Page(read()[0])

    shown = page.text.count('<script>alert("1")</script> $\\frac{$ | `x`')
    # Title twice, summary, class, both confused, setting, file, skipped, differs.
    assert shown >= 10


def test_hostile_names_are_escaped_in_markdown(
    read: Callable[[], tuple[str, str]], hostile: dict[str, Any]
) -> None:
    # Indented lines are literal.
    text = re.sub("^    .*$", "", read()[1], flags=re.MULTILINE)

    assert "<" not in text
    assert not re.search(r"(?<!\\)[`$]", text)
    assert not re.search(r"(?<!\\)\[", text)
    assert text.startswith('# &lt;script&gt;alert("1")&lt;/script&gt; \\$\\\\frac{\\$ \\| \\`x\\`')


@pytest.mark.parametrize("fixture", ["results", "hostile"])
def test_markdown_tables_have_the_same_columns_in_each_line(
    read: Callable[[], tuple[str, str]], request: pytest.FixtureRequest, fixture: str
) -> None:
    request.getfixturevalue(fixture)

    tables = _markdown_tables(read()[1])

    # Recommendation, comparison, details, differences, confused, searched, teachers, students,
    # settings, origins, times.
    assert len(tables) == 11
    for lines in tables:
        assert len({_columns(line) for line in lines}) == 1


@pytest.mark.parametrize("fixture", ["results", "hostile"])
def test_every_plot_is_well_formed(
    read: Callable[[], tuple[str, str]], request: pytest.FixtureRequest, fixture: str
) -> None:
    request.getfixturevalue(fixture)

    svgs = _svgs(read()[0])

    assert len(svgs) == 6
    for svg in svgs:
        ElementTree.fromstring(svg)  # Raises unless it is XML.


def test_a_method_with_a_hostile_name_is_in_the_legend(
    read: Callable[[], tuple[str, str]], hostile: dict[str, Any]
) -> None:
    svg = _svgs(read()[0])[0]

    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter()]
    assert any(text.startswith('<script>alert("1")</script> $\\frac{$') for text in texts)


def test_no_identifier_is_used_twice(read: Callable[[], tuple[str, str]]) -> None:
    page = Page(read()[0])

    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))


def test_every_reference_inside_a_plot_resolves(
    read: Callable[[], tuple[str, str]],
) -> None:
    for svg in _svgs(read()[0]):
        names = set(re.findall(r' id="([^"]+)"', svg))
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= names


def test_the_same_input_gives_the_same_bytes(
    write: Callable[[], tuple[str, str]], run: pathlib.Path
) -> None:
    write()
    first = [(run / name).read_bytes() for name in ("report.html", "report.md")]
    write()

    assert [(run / name).read_bytes() for name in ("report.html", "report.md")] == first


def test_sections_come_in_their_order(read: Callable[[], tuple[str, str]]) -> None:
    text = read()[1]

    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    assert heads == [
        "ReMem on digits",
        "Results",
        "Further metrics of the selected models, on test",
        "Differences on test, in points",
        "Most frequent errors on test: ReMem, student",
        "Hyperparameters searched",
        "All teachers, on validation",
        "All students, on validation",
        "Settings",
        "Data, models, versions",
        "Times",
        "Differs from the paper",
    ]
    assert "The plots are in report.html." in text


def test_a_run_without_teachers_has_no_table_of_them(
    write: Callable[[], tuple[str, str]], results: dict[str, Any]
) -> None:
    assert all("All teachers, on validation" in content for content in write())

    results["teachers"] = []

    assert not any("All teachers" in content for content in write())


def test_page_holds_the_numbers_of_the_comparison(read: Callable[[], tuple[str, str]]) -> None:
    page, text = read()

    assert "<td>92.50</td><td>93.00</td><td>95.00</td><td>94.00</td>" in page
    assert "| ReMem | 92.50 | 93.00 | 95.00 | 94.00 | 200 | 0.1 | 4 | 0.9 | 0.5 | 0.8 | 1 |" in text


def test_page_holds_further_metrics_and_their_explanation(
    read: Callable[[], tuple[str, str]],
) -> None:
    page, text = read()

    assert "<td>92.50</td><td>99.00</td><td>46.25</td><td>3.00</td><td>93.50</td>" in page
    assert "| one | zero | 20 | 150 |" in text
    for content in (page, text):
        assert "a student and its teacher predict the same class" in content


def test_results_of_older_versions_are_reported(
    write: Callable[[], tuple[str, str]], older: dict[str, Any]
) -> None:
    for row in older["methods"]:
        for role in ("student", "teacher"):
            for name in ("top5", "calibration_error", "agreement", "confused"):
                (row[role] or {"test": {}})["test"].pop(name, None)

    text = write()[1]

    assert "Differences on test" not in text
    assert "| ReMem, student | 92.50 | – | 46.25 | – | – | 0.5 |" in text  # noqa: RUF001
    assert "Errors made most often" not in text


def test_unofficial_data_are_warned_of_in_both_files(
    read: Callable[[], tuple[str, str]], results: dict[str, Any]
) -> None:
    results["data"]["official"] = False

    page, text = read()

    assert "Do not compare these results" in page
    assert "Do not compare these results" in text


def test_ascent_is_plotted_only_if_some_radius_is_above_zero(
    results: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    with_sam = {plot.title for plot in plots.draw(results, rows)}
    results["methods"][2]["teacher_settings"]["rho"] = 0.0
    without = {plot.title for plot in plots.draw(results, rows)}

    assert with_sam - without == {"Teachers: norm of SAM's ascent gradient"}


def test_diverged_students_are_counted_and_not_drawn(
    results: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    complete = plots.draw(results, rows)[0]
    results["students"][0]["diverged"] = True

    cut = plots.draw(results, rows)[0]

    assert "diverged: 1" in cut.caption
    assert complete.svg.count("<use") == cut.svg.count("<use") + 1


def test_a_run_without_metrics_is_reported_without_curves(
    write: Callable[[], tuple[str, str]], run: pathlib.Path
) -> None:
    (run / "metrics.jsonl").unlink()

    assert len(_svgs(write()[0])) == 1  # Students against their teachers.


def test_missing_results_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(checks.SettingError, match=r"results\.json does not exist"):
        report.write(tmp_path)


def test_another_format_is_rejected(run: pathlib.Path, results: dict[str, Any]) -> None:
    (run / "results.json").write_text(json.dumps({**results, "format": 2}), encoding="utf-8")

    with pytest.raises(checks.SettingError, match=r"must be one of 1; got 2"):
        report.write(run)


def test_nothing_partial_is_left_behind(
    write: Callable[[], tuple[str, str]], run: pathlib.Path
) -> None:
    write()

    assert not list(run.glob("*.partial"))
