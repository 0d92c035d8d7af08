"""Reports opened in a real browser: headless Chromium of Debian."""

import copy
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from remem_jax import report
from tests.oracles.browser import Browser

# Names that folders and files may have. A script that runs sets a title or a variable.
NAMES = (
    "<img src=x onerror=\"hacked=1;document.title='hacked'\">",
    "\"><script>hacked=1;document.title='hacked'</script>",
    "</title></style><svg onload=\"hacked=1;alert('hacked')\">",
    "javascript:alert('hacked')",
    "' style='position:fixed' onclick='hacked=1' x='{{7*7}}",
    "http://127.0.0.1:9/<link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "/mnt/" + "averylongnamewithoutablank" * 8,
)
WIDTHS = (400, 1600)
FIGURES = {"run": 7, "study": 3, "analysis": 7}
_FACTS = """(async () => {
  await document.fonts.ready;
  const broken = [];
  for (const image of document.querySelectorAll('image')) {
    await image.decode().catch(() => broken.push(image.outerHTML.slice(0, 80)));
  }
  const box = (element) => {
    const {left, right, width, height} = element.getBoundingClientRect();
    return {left, right, width, height};
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const size = (element) => parseFloat(getComputedStyle(element).fontSize);
  const scale = (element) => { const m = element.getScreenCTM(); return Math.hypot(m.a, m.b); };
  return {
    title: document.title,
    hacked: typeof hacked,
    text: document.body.innerText,
    window: innerWidth,
    width: document.documentElement.scrollWidth,
    broken,
    images: all('image').length,
    figures: all('figure').length,
    plots: all('figure svg').map((e) => ({...box(e), scrolls: e.closest('.wide') !== null})),
    marks: all('figure svg').map((e) => e.querySelectorAll('path, use, image').length),
    regions: all('.wide').map(box),
    lists: all('table:not(.numeric)').filter((e) => e.rows[0].cells.length === 2)
      .map((e) => ({
        outside: e.scrollWidth - e.parentElement.clientWidth,
        values: e.rows[1].cells[1].getBoundingClientRect().width,
      })),
    names: all('.numeric tbody th:not([scope=rowgroup])').map((e) => box(e).width),
    letters: all('svg text').map((e) => [size(e) * scale(e), e.textContent]),
    words: all('body :not(svg *)').map((e) => [size(e), e.tagName]),
  };
})()"""


class Rendered(NamedTuple):
    """A page as rendered by the browser."""

    kind: str
    path: pathlib.Path
    facts: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, as it takes seconds to start."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed (Debian's package chromium).")
    with Browser.started(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def cache() -> dict[Any, Any]:
    """Pages and their rendered facts, written and measured once."""
    return {}


@pytest.fixture(params=FIGURES)
def page(
    request: pytest.FixtureRequest,
    cache: dict[Any, Any],
    tmp_path_factory: pytest.TempPathFactory,
    results: dict[str, Any],
    rows: list[dict[str, Any]],
) -> tuple[str, pathlib.Path]:
    """A kind of report and its page, with hostile names."""
    kind = request.param
    if kind not in cache:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "run":
            cache[kind] = _run(folder, results, rows)
        else:
            cache[kind] = {"study": _study, "analysis": _analysis}[kind](folder)
    return kind, cache[kind]


@pytest.fixture(params=WIDTHS)
def rendered(
    request: pytest.FixtureRequest,
    page: tuple[str, pathlib.Path],
    cache: dict[Any, Any],
    browser: Browser,
) -> Rendered:
    """The page in a window of this width in pixels."""
    if (*page, request.param) not in cache:
        browser.open(page[1], request.param)
        facts = browser.value(_FACTS)
        cache[*page, request.param] = Rendered(*page, facts, list(browser.events))
    return cache[*page, request.param]


def _namer() -> Callable[[], str]:
    """Returns a function that cycles through the names."""
    return itertools.cycle(NAMES).__next__


def _information(excess: float) -> dict[str, Any]:
    nce = {"bound": 2.5, "deviation": 0.25, "batch": 64, "noise": 6.0}
    return {
        "loss": excess + 0.5,
        "floor": 0.5,
        "excess": excess,
        "deviation": 0.001,
        "slope": -0.002,
        "last": 5,
        "info_nce": nce,
    }


def _run(folder: pathlib.Path, results: dict[str, Any], rows: list[dict[str, Any]]) -> pathlib.Path:
    name = _namer()
    results["title"] = name()
    results["data"] |= {"title": name(), "class_names": [name(), name()], "skipped": NAMES}
    results["config"] |= {"data": {"path": name()}, "differs": [name()]}
    results["models"] |= {"init": name(), "teacher": name(), "student": name()}
    for pair in results["methods"][2]["student"]["test"]["confused"]:
        pair |= {"class": name(), "taken_for": name()}
    for teacher, excess in zip(results["teachers"], (0.25, 0.125), strict=True):
        teacher["information"] = _information(excess)
    results["seconds"][name()] = 1.0
    results["versions"]["jax"] = name()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write(folder)
    return folder / "report.html"


def _study(folder: pathlib.Path) -> pathlib.Path:
    """Writes the report of a study of two rows and six columns; only the first has trials."""
    name = _namer()
    lines = [{"name": row, "title": name(), "group": name()} for row in "ab"]
    data = {
        "metric": "top1",
        "official": False,
        "classes": 10,
        "examples": {"train": 10, "validation": 5, "test": 5},
        "image_size": 32,
    }
    columns = [
        {"name": str(i), "title": name(), "data": {**data, "title": name()}} for i in range(6)
    ]
    teacher = {
        "method": "finetune",
        "error": 0.25,
        "excess": 0.125,
        "deviation": None,
        "change": -0.01,
        "info_nce": None,
        "student": 0.5,
    }
    teachers = [
        teacher | {"step": step, "error": 25 / step, "pruned": {"MLP": step > 100, "attention": 0}}
        for step in (100, 200)
    ]
    trials = [
        {
            "trial": name(),
            "row": row,
            "column": "0",
            "seed": 0,
            "fraction": 1.0,
            "settings": {name(): name()},
            "state": "failed",
            "reason": name(),
            "validation": 0.5,
            "teacher_steps": 200,
            "student_steps": 80,
            "students": 2,
            "seconds": 4.0,
            "device": name(),
            "worker": name(),
            "folder": name(),
            "teachers": copy.deepcopy(teachers),
        }
        for row in "ab"
    ]
    replicate = {
        "seed": 0,
        "student": 0.75,
        "teacher": 0.875,
        "validation": 0.5,
        "students_of_seeds": [0.75],
        "settings": {name(): name()},
        "trial": name(),
        "trials": 1,
        "students": 2,
    }
    record = {
        "format": 1,
        "title": name(),
        "table": 0,
        "figure": 1,
        "mini": name(),
        "rows": lines,
        "columns": columns,
        "seeds": [0],
        "cells": [{"row": "a", "column": "0", "choice": "validation", "replicates": [replicate]}],
        "missing": [{"row": "b", "column": "0", "seed": 0, "why": why} for why in NAMES],
        "trials": trials,
        "search": {"kind": "grid", "text": name()},
        "cost": {
            "trials": 1,
            "teacher_steps": 200,
            "student_steps": 80,
            "operations": 1e9,
            "hours": 0.5,
            "spent_hours": 0.1,
        },
        "differs": [name()],
        "versions": {"jax": name()},
    }
    (folder / "study.json").write_text(json.dumps(record), encoding="utf-8")
    report.write_study(folder)
    return folder / "study.html"


def _analysis(folder: pathlib.Path) -> pathlib.Path:
    """Writes the report of all analyses of two models, on two images."""
    name = _namer()
    titles = [name(), name()]
    rng = np.random.default_rng(0)
    pixels = rng.random((2, 8, 8, 3), np.float32)
    pictures = {"images": pixels}
    for number in range(2):
        pictures |= {
            f"reconstructions_{number}": pixels,
            f"pixel_excess_{number}": pixels[number, :, :, 0],
            f"image_losses_{number}": np.array([0.6, 0.7]),
            f"image_floors_{number}": np.array([0.5, 0.5]),
        }
    np.savez(folder / "pictures.npz", allow_pickle=False, **pictures)
    block = folder / "block"
    block.mkdir()
    np.savez(block / "neurons.npz", allow_pickle=False, value=rng.random((1, 16)))
    critical = {"0": pixels[0], "1": pixels[1], "visualisations": pixels[None]}
    np.savez(block / "pictures.npz", allow_pickle=False, **critical)
    record = {
        "format": 1,
        "title": name(),
        "config": {
            "data": {"path": name()},
            "models": {"model_0": {"teacher": {"pruned_attention": name()}}},
            "differs": [name()],
        },
        "data": {"title": name(), "classes": 10, "image_size": 8, "official": None},
        "models": [
            {
                "title": title,
                "init": f"{name()}.npz",
                "init_digest": "9d05286aaa94492c",
                "depth": 2,
                "neurons": 16,
                "parameters": 1000,
            }
            for title in titles
        ],
        "analyses": {
            "information": {"settings": [_setting(titles, 1e-3), _setting(titles, 3e-3)]},
            "expertness": {
                "clusters": 10,
                "threshold": 0.1,
                "images": 2,
                "models": [{"title": title, "layers": [_layer(0), _layer(1)]} for title in titles],
            },
            "criticality": {
                "blocks": [
                    {
                        "name": "model_0",
                        "title": titles[0],
                        "layer": 1,
                        "images": 2,
                        "neurons": [
                            {
                                "neuron": 3,
                                "criticality": 0.5,
                                "images": [
                                    {"place": place, "class": name(), "influence": 0.5}
                                    for place in range(2)
                                ],
                            }
                        ],
                        "costs": {"forward_passes": 1.0},
                        "seconds": 1.0,
                        "folder": "block",
                    }
                ]
            },
        },
        "seed": 0,
        "versions": {"jax": name()},
        "device": {"platform": "cpu", "kind": name(), "count": 1},
    }
    (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    report.write_analysis(folder)
    return folder / "report.html"


def _setting(titles: list[str], rate: float) -> dict[str, Any]:
    return {
        "folder": ".",
        "learning_rate": rate,
        "second_beta": 0.999,
        "align_corners": True,
        "models": [
            {"title": title, **_information(excess), "seeds": [_seed(excess)]}
            for title, excess in zip(titles, (0.25, 0.125), strict=True)
        ],
    }


def _seed(excess: float) -> dict[str, Any]:
    return {"seed": 0, "excess": excess, "curve": [[10, excess + 0.1], [20, excess]]}


def _layer(layer: int) -> dict[str, Any]:
    return {
        "layer": layer,
        "shares": [0.2, 0.25],
        "null_mean": 0.1,
        "null_deviation": 0.01,
        "sparsity": 0.5,
        "seconds": 1.0,
        "seconds_of_all_layers": 2.0,
    }


def _messages(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Returns console messages, errors and blocked actions of a page."""
    return [
        json.dumps(parameters)
        for method, parameters in events
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]


def _requests(events: list[tuple[str, dict[str, Any]]]) -> set[str]:
    """Returns the URLs that a page requested, without embedded ones."""
    urls = {
        parameters["request"]["url"]
        for method, parameters in events
        if method == "Network.requestWillBeSent"
    }
    return {url for url in urls if not url.startswith("data:")}


def _dialogs(events: list[tuple[str, dict[str, Any]]]) -> int:
    return sum(method == "Page.javascriptDialogOpening" for method, _ in events)


def test_the_browser_detects_all_faults_of_a_bad_page(
    browser: Browser, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "bad.html"
    names = "".join(f"<p>{name}</p>" for name in NAMES[:3])
    image = "<svg><image href='data:image/png;base64,AAAA'/><text>small</text></svg>"
    path.write_text(
        f"<title>bad</title>{names}<img src='http://127.0.0.1:9/x.png'>"
        f"<figure style='width: 2000px; font-size: 5px'>{image}</figure>",
        encoding="utf-8",
    )

    browser.open(path, WIDTHS[0])
    facts = browser.value(_FACTS)

    assert (facts["title"], facts["hacked"]) == ("hacked", "number")
    assert _dialogs(browser.events) == 1
    assert _messages(browser.events)
    assert _requests(browser.events) > {path.as_uri(), "http://127.0.0.1:9/x.png"}
    assert facts["broken"]
    assert facts["width"] > facts["window"]
    assert facts["letters"] == [[5, "small"]]


def test_all_figures_are_rendered(rendered: Rendered) -> None:
    plots = rendered.facts["plots"]

    assert rendered.facts["figures"] == len(plots) == FIGURES[rendered.kind]
    assert min(plot["width"] for plot in plots) > 300
    assert min(plot["height"] for plot in plots) > 100
    assert min(rendered.facts["marks"]) > 4  # The backgrounds of figure and panels are two.
    assert not rendered.facts["broken"]
    assert rendered.kind != "analysis" or rendered.facts["images"] >= 12


def test_a_page_has_no_errors(rendered: Rendered) -> None:
    assert not _messages(rendered.events)


def test_a_page_requests_no_other_resource(rendered: Rendered) -> None:
    assert _requests(rendered.events) == {rendered.path.as_uri()}


def test_names_are_text(rendered: Rendered) -> None:
    assert [name for name in NAMES if name not in rendered.facts["text"]] == []
    assert rendered.facts["title"].removesuffix(" (mini version)") in NAMES


def test_no_name_runs_a_script_even_if_scripts_are_allowed(
    page: tuple[str, pathlib.Path], browser: Browser
) -> None:
    kind, path = page
    figures = sorted((path.parent / "figures").glob("*.svg"))
    browser.call("Page.setBypassCSP", enabled=True)
    try:
        for opened in (path, *figures):
            browser.open(opened, WIDTHS[1])
            assert browser.value("typeof hacked") == "undefined"
            assert browser.value("document.title") != "hacked"
            assert not _dialogs(browser.events)
            assert not _messages(browser.events)
            assert _requests(browser.events) == {opened.as_uri()}
    finally:
        browser.call("Page.setBypassCSP", enabled=False)
    assert figures or kind == "run"


def test_only_wide_elements_scroll(rendered: Rendered) -> None:
    facts = rendered.facts

    assert facts["width"] <= facts["window"]
    for box in facts["regions"] + [plot for plot in facts["plots"] if not plot["scrolls"]]:
        assert box["left"] >= 0
        assert box["right"] <= facts["window"]


def test_settings_are_read_without_scrolling(rendered: Rendered) -> None:
    lists = rendered.facts["lists"]

    assert lists
    assert max(item["outside"] for item in lists) <= 0
    assert min(item["values"] for item in lists) >= 80  # Words are not broken.


def test_names_of_rows_leave_space_for_numbers(rendered: Rendered) -> None:
    assert rendered.facts["names"]
    assert max(rendered.facts["names"]) <= rendered.facts["window"] / 2


def test_text_is_large_enough(rendered: Rendered) -> None:
    # At full width, a point of a figure is a pixel; few labels have a size of 8.5.
    assert min(rendered.facts["letters"])[0] >= 7.5
    assert np.median([size for size, _ in rendered.facts["letters"]]) >= 9
    assert min(rendered.facts["words"])[0] >= 12
