"""The report of a study agrees with values computed by hand."""

import copy
import csv
import html.parser
import json
import math
import pathlib
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from remem_jax import checks, report
from remem_jax.report import paper, tables
from remem_jax.report.study import differences, gains, results_table, search, trials
from remem_jax.report.study import page as study_page

HOSTILE = '<script>alert("1")</script> $\\frac{$ | `x` \u202e\x01\udcff\nnext [a](http://evil) _b_'
SIX = {
    "cifar100": "CIFAR-100",
    "caltech101": "Caltech-101",
    "sun397_tfds": "SUN397 (TFDS)",
    "inat2017": "iNaturalist",
    "pcam": "Patch Camelyon",
    "imagenet_lt": "ImageNet-LT",
}
ALL_FILES = ("study.html", "study.md", "table.csv", "trials.csv")

Write = Callable[[], tuple[str, str]]


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text of a page, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        """Reads the text."""
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.rows: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = [(name, value or "") for name, value in attrs]
        # Figures have styles, and refer to their own parts.
        of_figures = [*self.open, tag].count("svg") > 0
        self.attributes += [
            (name, value)
            for name, value in found
            if not of_figures or (name != "style" and not value.startswith("#"))
        ]
        if tag not in ("meta", "col"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("th", "td"):
            self.rows[-1] += int(dict(attrs).get("colspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def _column(name: str, title: str, **data: Any) -> dict[str, Any]:
    column = {
        "title": title,
        "metric": "top1",
        "official": True,
        "classes": 100,
        "examples": {"train": 45_000, "validation": 5_000, "test": 10_000},
        "image_size": 224,
    }
    return {"name": name, "title": title, "data": column | data}


def _replicate(seed: int, student: float | None, teacher: float | None) -> dict[str, Any]:
    return {
        "seed": seed,
        "student": student,
        "teacher": teacher,
        "validation": 0.5,
        "students_of_seeds": [student],
        "settings": {"rho": 0.5, "teacher_step": 500, "student.learning_rate": 0.1},
        "trial": f"trial{seed}",
        "trials": 12,
        "students": 324,
    }


def _cell(row: str, column: str, *shares: tuple[float, float], choice: str = "validation") -> Any:
    replicates = [_replicate(seed, *pair) for seed, pair in enumerate(shares)]
    return {"row": row, "column": column, "choice": choice, "replicates": replicates}


def _trial(name: str, row: str, column: str, **changes: Any) -> dict[str, Any]:
    trial = {
        "trial": name,
        "row": row,
        "column": column,
        "seed": 0,
        "fraction": 1.0,
        "settings": {"rho": 0.5},
        "state": "done",
        "reason": "",
        "validation": 0.5,
        "teacher_steps": 10_000,
        "student_steps": 20_000,
        "students": 27,
        "seconds": 754.0,
        "device": "1 x H100",
        "folder": None,
    }
    return trial | changes


@pytest.fixture
def record() -> dict[str, Any]:
    """The content of study.json: a part of Table 3 with two seeds."""
    mobile, efficient = "mobilenet_v2", "efficientnet_v2"
    return {
        "format": 1,
        "title": "Table 3: efficient students",
        "table": 3,
        "mini": "",
        "rows": [
            {"name": f"{name}_{method}", "title": title, "group": group}
            for name, group in ((mobile, "MobileNetV2"), (efficient, "EfficientNetV2"))
            for method, title in (("finetune", "Fine-tuning"), ("remem", "ReMem"))
        ],
        "columns": [_column(name, title) for name, title in SIX.items()],
        "seeds": [0, 1],
        "cells": [
            _cell(f"{mobile}_finetune", "cifar100", (0.77, 0.90), (0.79, 0.92)),
            _cell(f"{mobile}_remem", "cifar100", (0.80, 0.91), (0.83, 0.93)),
            _cell(f"{mobile}_remem", "pcam", (0.90, 0.92)),
        ],
        "missing": [
            {"row": f"{mobile}_remem", "column": "pcam", "seed": 1, "why": "failed: no memory"}
        ],
        "trials": [
            _trial("a1", f"{mobile}_remem", "cifar100", validation=0.4),
            _trial("b2", f"{mobile}_remem", "cifar100", validation=0.6),
            _trial(
                "c3",
                f"{mobile}_finetune",
                "cifar100",
                state="failed",
                reason="no memory",
                validation=None,
                seconds=None,
                device=None,
                students=0,
            ),
        ],
        "search": {"kind": "grid", "text": "A grid of three radii."},
        "cost": {
            "trials": 36,
            "teacher_steps": 360_000,
            "student_steps": 20_000_000,
            "operations": 1.2e18,
            "hours": 12.34,
            "spent_hours": 3.4,
        },
        "differs": ["The batch has 128 images."],
        "versions": {"remem_jax": "0.1.0"},
    }


@pytest.fixture
def write(tmp_path: pathlib.Path, record: dict[str, Any]) -> Write:
    """Returns a function that writes the report of `record` and returns HTML and Markdown."""

    def write_and_read() -> tuple[str, str]:
        (tmp_path / "study.json").write_text(json.dumps(record), encoding="utf-8")
        report.write_study(tmp_path)
        page = (tmp_path / "study.html").read_text(encoding="utf-8")
        return page, (tmp_path / "study.md").read_text(encoding="utf-8")

    return write_and_read


@pytest.fixture
def hostile(record: dict[str, Any]) -> dict[str, Any]:
    """The record, with a hostile name wherever a stranger could put one."""
    record |= {"title": HOSTILE, "mini": HOSTILE, "differs": [HOSTILE]}
    record["search"]["text"] = HOSTILE
    record["versions"] = {HOSTILE: HOSTILE}
    record["rows"][0] |= {"title": HOSTILE, "group": HOSTILE}
    record["rows"][1] |= {"name": HOSTILE, "group": HOSTILE}
    record["columns"][0] |= {"title": HOSTILE}
    record["columns"][0]["data"] |= {"title": HOSTILE, "metric": HOSTILE, "official": False}
    record["missing"][0] |= {"row": HOSTILE, "why": HOSTILE}
    record["cells"][1]["row"] = HOSTILE
    record["cells"].append(record["cells"][1] | {"choice": "test"})
    record["cells"][1]["replicates"][0] |= {"trial": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    record["trials"][2] |= {"trial": HOSTILE, "reason": HOSTILE, "device": HOSTILE}
    record["trials"][2]["settings"] = {HOSTILE: [HOSTILE]}
    place = {"row": HOSTILE, "column": HOSTILE, "seed": 0}
    grid = {"settings": 1, "teacher": {HOSTILE: [0.5]}, "fixed": {}, "checkpoints": [5]}
    student = {"loss": HOSTILE, "learning_rate": [0.1], "temperature": [], "weight": [], "seed": []}
    record["search"] |= {
        "kind": "halving",
        "rows": [{"row": HOSTILE, "columns": [HOSTILE], "grid": grid | {"students": [student]}}],
        "rungs": [
            {
                **place,
                "settings": 1,
                "rungs": [{"fraction": 1.0, "planned": 1, "reached": 1, "done": 1}],
            }
        ],
        "dropped": [
            {
                **place,
                "settings": {HOSTILE: [HOSTILE]},
                "fraction": None,
                "trial": HOSTILE,
                "validation": None,
            }
        ],
    }
    return record


def _lines(record: dict[str, Any], block: int = 0, choice: str = "validation") -> dict[str, Any]:
    """Returns the cells of a block by label."""
    table = results_table.flat("", results_table.grids(record, choice)[block])
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def _gains(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    (table,) = gains.over_baseline(record, "validation")
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def _csv(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader((path / "table.csv").read_text(encoding="utf-8").splitlines()))


def _markdown_tables(text: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]


def _columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_a_cell_has_mean_and_sample_deviation_over_seeds(record: dict[str, Any]) -> None:
    shares = (0.771, 0.783, 0.802)
    record["seeds"] = [0, 1, 2]
    record["cells"] = [_cell("mobilenet_v2_remem", "cifar100", *((s, s / 2) for s in shares))]

    cell = _lines(record)["MobileNetV2: ReMem"]["CIFAR-100, student"]

    percents = 100 * np.array(shares)
    assert cell == f"{percents.mean():.2f} (sd {percents.std(ddof=1):.2f})"


def test_a_cell_with_one_seed_has_no_deviation(record: dict[str, Any]) -> None:
    record["seeds"] = [0]
    record["cells"] = [_cell("mobilenet_v2_remem", "cifar100", (0.8, 0.9))]

    assert _lines(record)["MobileNetV2: ReMem"]["CIFAR-100, teacher"] == "90.00"
    assert "one seed (0)" in " ".join(study_page.notes(record))


def test_a_cell_with_fewer_seeds_is_marked(record: dict[str, Any]) -> None:
    assert _lines(record)["MobileNetV2: ReMem"]["Patch Camelyon, student"] == "90.00 (1 of 2)"


def test_an_absent_cell_is_marked_missing(record: dict[str, Any]) -> None:
    row = _lines(record)["EfficientNetV2: ReMem"]

    assert set(row.values()) == {results_table.MISSING}


def test_a_student_without_a_teacher_has_a_dash(record: dict[str, Any]) -> None:
    for replicate in record["cells"][0]["replicates"]:
        replicate["teacher"] = None

    assert _lines(record)["MobileNetV2: Fine-tuning"]["CIFAR-100, teacher"] == tables.NOTHING


def test_a_diverged_student_is_excluded_from_the_mean(record: dict[str, Any]) -> None:
    record["cells"][0]["replicates"][0]["student"] = None  # JSON stores non-finite numbers as null.

    row = _lines(record)["MobileNetV2: Fine-tuning"]

    assert row["CIFAR-100, student"] == "79.00 (1 of 2)"


def test_the_papers_numbers_are_below_ours_with_differences(record: dict[str, Any]) -> None:
    rows = _lines(record)

    labels = list(rows)
    assert labels[3:6] == [
        "MobileNetV2: ReMem",
        "MobileNetV2: ReMem (paper)",
        "MobileNetV2: ReMem (difference)",
    ]
    cells = [rows[label]["CIFAR-100, student"] for label in labels[3:6]]
    assert cells == ["81.50 (sd 2.12)", "80.2", "+1.3"]


def test_a_difference_that_rounds_to_zero_has_no_sign(record: dict[str, Any]) -> None:
    record["cells"] = [_cell("mobilenet_v2_remem", "cifar100", (0.8019, 0.9251))]

    row = _lines(record)["MobileNetV2: ReMem (difference)"]

    assert row["CIFAR-100, student"] == row["CIFAR-100, teacher"] == "0.0"


@pytest.mark.parametrize("official", [False, None])
def test_unofficial_data_have_no_differences(record: dict[str, Any], official: Any) -> None:
    record["columns"][0]["data"]["official"] = official

    rows = _lines(record)

    differences = rows["MobileNetV2: ReMem (difference)"]
    assert differences["CIFAR-100, student"] == tables.NOTHING
    assert differences["Patch Camelyon, student"] == "-1.2"
    assert rows["MobileNetV2: ReMem (paper)"]["CIFAR-100, student"] == tables.NOTHING
    assert rows["MobileNetV2: ReMem (paper, full size)"]["CIFAR-100, student"] == "80.2"
    assert "the data for CIFAR-100 are different here" in " ".join(study_page.notes(record))


def test_a_mini_version_has_no_differences(record: dict[str, Any]) -> None:
    record["mini"] = "This is a mini version."

    rows = _lines(record)

    assert not [label for label in rows if "(difference)" in label or "(paper)" in label]
    assert rows["MobileNetV2: ReMem (paper, full size)"]["CIFAR-100, student"] == "80.2"
    assert "this is a mini version" in " ".join(study_page.notes(record))


def test_a_mini_version_is_labelled_at_the_top(record: dict[str, Any], write: Write) -> None:
    record["mini"] = "Small images. Not to be compared with the paper's."

    page, text = write()

    assert "<h1>Table 3: efficient students (mini version)</h1>\n<p class" in page
    assert text.startswith(
        "# Table 3: efficient students (mini version)\n\n**Small images. Not to be compared"
    )


def test_a_title_that_contains_mini_is_unchanged(record: dict[str, Any]) -> None:
    record |= {"mini": "Small images.", "title": "Table 3 (mini): efficient students"}

    assert study_page.title(record) == "Table 3 (mini): efficient students"


def test_table_4_has_no_differences_since_its_data_set_is_lost(record: dict[str, Any]) -> None:
    record |= {
        "table": 4,
        "rows": [{"name": "remem", "title": "ReMem"}],
        "columns": [_column("i1k", "ImageNet-1k"), _column("i21k", "ImageNet-21k")],
        "cells": [_cell("remem", "i1k", (0.7, 0.8))],
    }
    for column in record["columns"]:
        column["data"]["title"] = "Food-101"

    rows = _lines(record)

    assert list(rows) == ["ReMem", "ReMem (paper)"]
    assert rows["ReMem (paper)"]["ImageNet-1k, student"] == "78.2"
    notes = " ".join(study_page.notes(record))
    assert "Which data set Table 4 is about is lost" in notes
    assert "“Food-101” for ImageNet-1k, ImageNet-21k" in notes


@pytest.mark.parametrize("table", [1, 2])
def test_a_lost_table_is_named_as_lost(record: dict[str, Any], table: int) -> None:
    record["table"] = table

    assert not [label for label in _lines(record) if "paper" in label]
    assert f"Table {table} is lost" in " ".join(study_page.notes(record))


def test_the_data_set_of_table_10_is_called_an_assumption(record: dict[str, Any]) -> None:
    record["table"] = 10

    assert "SUN397 with TFDS's split: an assumption" in " ".join(study_page.notes(record))


def test_a_study_that_is_no_table_does_not_mention_the_paper(
    record: dict[str, Any], write: Write
) -> None:
    record["table"] = 0

    text = write()[1]

    assert "(paper" not in text
    assert "## Results\n" in text


@pytest.mark.parametrize(("columns", "sizes"), [(1, [1]), (6, [6]), (7, [6, 1]), (16, [6, 6, 4])])
def test_columns_are_in_blocks_of_six(
    record: dict[str, Any], columns: int, sizes: list[int]
) -> None:
    record["columns"] = [_column(f"set{i}", f"Set {i}") for i in range(columns)]

    grids = results_table.grids(record, "validation")

    assert [len(grid.columns) for grid in grids] == sizes
    assert [title for grid in grids for title in grid.columns] == [
        f"Set {i}" for i in range(columns)
    ]


def test_rows_without_groups_have_no_group_in_their_labels(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        row.pop("group")

    assert list(_lines(record))[:2] == ["Fine-tuning", "Fine-tuning (paper)"]


def test_a_gain_compares_equal_seeds(record: dict[str, Any]) -> None:
    lines = _gains(record)

    # With one degree of freedom, the t distribution is Cauchy's: its quantile is a tangent.
    half = math.tan(0.475 * math.pi) * statistics.stdev([3.0, 4.0]) / math.sqrt(2)
    line = lines["MobileNetV2: ReMem over Fine-tuning"]["CIFAR-100"]
    assert line == f"+3.50 [{3.5 - half:+.2f}, {3.5 + half:+.2f}]"
    p_value = 1 - 2 * math.atan(3.5 / 0.5) / math.pi
    line = lines["MobileNetV2: ReMem over Fine-tuning (over seeds)"]["CIFAR-100"]
    assert line == f"n = 2, sd {math.sqrt(0.5):.2f}, p = {p_value:.2g}"


def test_a_gain_leaves_out_a_seed_that_the_baseline_lacks(record: dict[str, Any]) -> None:
    del record["cells"][0]["replicates"][0]

    lines = _gains(record)

    assert lines["MobileNetV2: ReMem over Fine-tuning"]["CIFAR-100"] == "+4.00"
    line = lines["MobileNetV2: ReMem over Fine-tuning (over seeds)"]["CIFAR-100"]
    assert line == "n = 1 of 2, no interval"


def test_the_papers_gains_are_below_ours(record: dict[str, Any]) -> None:
    record["columns"][1]["data"]["official"] = False

    all_gains = _gains(record)

    published = all_gains["MobileNetV2: ReMem over Fine-tuning (paper)"]
    assert (published["CIFAR-100"], published["Caltech-101"]) == ("+2.4", tables.NOTHING)
    full_size = all_gains["MobileNetV2: ReMem over Fine-tuning (paper, full size)"]
    assert (full_size["CIFAR-100"], full_size["Caltech-101"]) == (tables.NOTHING, "+16.0")
    assert all_gains["EfficientNetV2: ReMem over Fine-tuning (paper)"]["CIFAR-100"] == "+2.7"


def test_without_gains_of_ours_those_of_the_paper_are_omitted(
    record: dict[str, Any], write: Write
) -> None:
    del record["cells"][0]

    assert gains.over_baseline(record, "validation") == []
    assert "Gains over the baseline" not in write()[1]


@pytest.mark.parametrize(("p_value", "p"), [(0.0312, "p = 0.031"), (1.8e-5, "p < 0.0001")])
def test_paired_errors_for_each_seed_are_below_a_gain(
    p_value: float, p: str, record: dict[str, Any], write: Write
) -> None:
    comparison = {"difference": 0.03, "standard_error": 0.0125, "images": 10_000}
    comparison["p_value"] = p_value
    record["compared"] = [
        {
            "baseline": "mobilenet_v2_finetune",
            "row": "mobilenet_v2_remem",
            "column": "cifar100",
            "choice": choice,
            "seeds": [{"seed": 0, **comparison}, {"seed": 1, "why": "not on record"}],
        }
        for choice in ("validation", "test")
    ]

    lines = _gains(record)

    line = lines["MobileNetV2: ReMem over Fine-tuning (over test images, seed by seed)"]
    assert line["CIFAR-100"] == f"1.25 ({p}); not on record"
    assert f"1.25 ({html.escape(p)}); not on record" in write()[0]
    assert {line[title] for title in line if title != "CIFAR-100"} == {tables.NOTHING}


@pytest.mark.parametrize(
    ("on_test", "expected"),
    [
        (False, "Each trial read the test split once"),
        (True, "Every student was evaluated on test too"),
    ],
)
def test_the_page_states_how_often_test_was_read(
    record: dict[str, Any], write: Write, on_test: bool, expected: str
) -> None:
    record["choose_on_test"] = on_test

    for text in write():
        assert expected in text
        assert ("read the test split once" in text) != on_test


@pytest.fixture
def halved(record: dict[str, Any]) -> dict[str, Any]:
    """The record, of a search by halving."""
    place = {"row": "mobilenet_v2_remem", "column": "cifar100", "seed": 0}
    rung = {"planned": 4, "reached": 4, "done": 3}
    student = {"loss": "dist", "learning_rate": [0.5, 1.0], "temperature": [2.0]}
    record["search"] |= {
        "kind": "halving",
        "rows": [
            {
                "row": place["row"],
                "columns": ["cifar100"],
                "grid": {
                    "settings": 9,
                    "teacher": {"rho": [0.05, 0.5]},
                    "fixed": {"mlp_weight": 1.0},
                    "checkpoints": [500, 1000],
                    "students": [{**student, "weight": [], "seed": [0]}],
                },
            }
        ],
        "rungs": [
            {
                **place,
                "settings": 9,
                "rungs": [
                    {"fraction": 0.25, **rung},
                    {"fraction": 1.0, **rung, "planned": 1, "reached": 0},
                ],
            }
        ],
        "dropped": [
            {**place, "settings": {"rho": rho}, "fraction": part, "trial": key, "validation": share}
            for rho, part, key, share in ((0.05, None, None, None), (0.5, 0.25, "b2", 0.375))
        ],
    }
    return record


def test_the_search_is_listed_by_row(halved: dict[str, Any]) -> None:
    table = search.grids(halved)

    assert table is not None
    assert table.rows == (
        (
            "MobileNetV2: ReMem",
            "CIFAR-100",
            "9",
            "rho 0.05, 0.5; mlp_weight fixed at 1",
            "500, 1000",
            "dist",
            "0.5, 1",
            "2",
            tables.NOTHING,
            "0",
        ),
    )


def test_axes_of_other_groups_have_a_column(halved: dict[str, Any], write: Write) -> None:
    without = search.grids(halved)
    others = {
        "student.weight_decay": [1e-4, 1e-3],
        "student.temperatures": [[1.0], [2.0, 4.0]],
        "student.scratch_learning_rates": [[]],
        "data.augment": ["none", "trivial"],
        "data.image_size": [16000],
        "student.hard_labels": [True],
    }
    halved["search"]["rows"][0]["grid"]["others"] = others

    table = search.grids(halved)

    assert without is not None
    assert table is not None
    assert (table.columns[5], "Other axes" in without.columns) == ("Other axes", False)
    assert (table.rows[0][:5], table.rows[0][6:]) == (without.rows[0][:5], without.rows[0][5:])
    assert table.rows[0][5] == (
        "student.weight_decay 0.0001, 0.001; student.temperatures (1), (2, 4); "
        "student.scratch_learning_rates (empty); data.augment none, trivial; "
        "data.image_size 16000; student.hard_labels True"
    )
    for text in write():
        assert "The grid varies data.augment, data.image_size; the table describes one" in text


def test_the_table_of_trials_has_settings_of_any_type(record: dict[str, Any]) -> None:
    for trial in record["trials"]:
        trial["settings"] = {"student.init": "", "teacher.steps": [5, 10], "data.augment": "rand"}

    table = trials.tried(record)

    assert table.columns[-3:] == ("student.init", "teacher.steps", "data.augment")
    assert {row[-3:] for row in table.rows} == {("empty", "5, 10", "rand")}


def test_a_search_by_halving_lists_its_rungs_and_dropped_settings(
    halved: dict[str, Any], write: Write
) -> None:
    rungs, dropped = search.halving(halved)

    assert rungs.columns[3:] == ("Settings", "Started", "1/4 of the steps", "All steps")
    assert rungs.rows[0][3:] == ("9", "4", "4 of 4", "0 of 1")
    assert [row[3:] for row in dropped.rows] == [
        ("never started", tables.NOTHING, tables.NOTHING, "0.05"),
        ("after 1/4 of the steps", "b2", "37.50", "0.5"),
    ]
    for text in write():
        assert "Settings never trained in full" in text


def test_a_whole_grid_has_no_rungs(record: dict[str, Any]) -> None:
    assert search.halving(record) == []


def test_gains_are_over_fine_tuning_even_if_it_is_not_first(record: dict[str, Any]) -> None:
    record["rows"] = [{"name": n, "title": n} for n in ("scratch", "finetune", "remem")]

    pairs = [(row["name"], baseline["name"]) for row, baseline in differences.comparisons(record)]

    assert pairs == [("finetune", "remem")]


def test_gains_are_over_the_first_row_without_fine_tuning(record: dict[str, Any]) -> None:
    record["rows"] = [{"name": n, "title": n} for n in ("lora", "lora_remem")]

    pairs = [(row["name"], baseline["name"]) for row, baseline in differences.comparisons(record)]

    assert pairs == [("lora", "lora_remem")]


def test_selection_on_test_is_separate_and_called_optimistic(
    record: dict[str, Any], write: Write
) -> None:
    without = write()[1]
    record["cells"].append(_cell("mobilenet_v2_remem", "pcam", (0.95, 0.9), choice="test"))

    page, text = write()

    heading = "Selected on the test split: optimistic"
    assert heading not in without
    assert f"<h2>{heading}</h2>" in page
    before, _, after = text.partition(f"## {heading}")
    assert "95.00 (1 of 2)" not in before
    assert "95.00 (1 of 2)" in after
    assert "does not say on which split it selects" in after


def test_the_table_selected_on_test_has_only_nonempty_columns(
    record: dict[str, Any],
) -> None:
    record["cells"].append(_cell("mobilenet_v2_remem", "pcam", (0.95, 0.9), choice="test"))

    (grid,) = results_table.grids(record, "test")

    assert grid.columns == ("Patch Camelyon",)


def test_missing_results_are_listed_with_reasons(record: dict[str, Any]) -> None:
    record["columns"][1]["data"] = None

    table = trials.missing(record)

    assert table is not None
    assert table.rows[0] == ("MobileNetV2: ReMem", "Patch Camelyon", "1", "failed: no memory")
    assert ("EfficientNetV2: ReMem", "CIFAR-100", "0, 1", "not on record") in table.rows
    assert ("EfficientNetV2: ReMem", "Caltech-101", "0, 1", "not run") in table.rows
    assert len(table.rows) == 24 - 2  # The two cells with both seeds are complete.


def test_cells_that_were_left_out_share_a_line(record: dict[str, Any]) -> None:
    record["only"] = "mobilenet_v2_remem"

    table = trials.missing(record)

    assert table is not None
    assert table.rows[0] == ("MobileNetV2: ReMem", "Patch Camelyon", "1", "failed: no memory")
    empty = 24 - len({(cell["row"], cell["column"]) for cell in record["cells"]})
    assert table.rows[-1] == (f"{empty} cells", "", "0, 1", "left out by config.only")
    assert "not run" not in {why for *_, why in table.rows}


def test_a_complete_table_has_no_missing_results(record: dict[str, Any], write: Write) -> None:
    record |= {"rows": record["rows"][:2], "columns": record["columns"][:1], "missing": []}

    assert "## Missing results\n\nNothing.\n" in write()[1]
    assert "Cells: 2 of 2 complete, 0 partial, 0 missing." in study_page.summary(record)


def test_summary_counts_cells_and_names_metrics(record: dict[str, Any]) -> None:
    record["columns"][1]["data"]["metric"] = "mean_per_class"

    text = study_page.summary(record)

    assert "Cells: 2 of 24 complete, 1 partial, 21 missing." in text
    assert "mean per-class accuracy for Caltech-101" in text


def test_selected_settings_are_in_the_order_of_the_table(record: dict[str, Any]) -> None:
    record["cells"].reverse()
    record["cells"][2]["replicates"][0]["students_of_seeds"] = [0.76, 0.78]

    table = trials.selected(record, "validation")

    assert table is not None
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert first == {
        "Row": "MobileNetV2: Fine-tuning",
        "Column": "CIFAR-100",
        "Seed": "0",
        "Student, test": "77.00",
        "By student seed": "76.00, 78.00",
        "Teacher, test": "90.00",
        "Student, validation": "50.00",
        "Trial": "trial0, of 12",
        "Students tried": "324",
        "rho": "0.5",
        "teacher_step": "500",
        "student.learning_rate": "0.1",
    }
    assert any("mean over students" in note for note in study_page.notes(record))


def test_settings_that_some_cells_lack_are_a_dash(record: dict[str, Any]) -> None:
    record["cells"][0]["replicates"][0]["settings"] = {"mlp_weight": 0.8}

    table = trials.selected(record, "validation")

    assert table is not None
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["mlp_weight"], row["rho"]) == ("0.8", tables.NOTHING)


def test_every_trial_is_listed_best_first_within_its_cell(record: dict[str, Any]) -> None:
    table = trials.tried(record)

    assert [row[0] for row in table.rows] == ["c3", "b2", "a1"]
    assert "failed: no memory" in table.rows[0]
    assert table.note == "Trials: 2 done, 1 failed."
    assert "Fraction of the steps" not in table.columns


def test_shortened_trials_come_after_full_ones(record: dict[str, Any]) -> None:
    record["trials"][1]["fraction"] = 0.25

    table = trials.tried(record)

    shares = table.columns.index("Fraction of the steps")
    assert [(row[0], row[shares]) for row in table.rows] == [
        ("c3", "1"),
        ("a1", "1"),
        ("b2", "0.25"),
    ]


def test_groups_of_sam_are_listed_only_if_they_differ(record: dict[str, Any]) -> None:
    head, groups = "Images per ascent step of SAM", {"a1": 64, "b2": 64, "c3": None}
    for trial in record["trials"]:
        group = groups[trial["trial"]]
        trial["ascent"] = group and {"examples": group, "batch_size": 512, "devices": 8}
    assert head not in trials.tried(record).columns

    record["trials"][0]["ascent"] = {"examples": 128, "batch_size": 512, "devices": 4}
    table = trials.tried(record)

    shown = [row[table.columns.index(head)] for row in table.rows]
    assert sorted(shown) == sorted(["128", "64", tables.NOTHING])


def test_planned_and_spent_costs_are_listed(record: dict[str, Any]) -> None:
    rows = dict((row[0], row[1:]) for row in trials.cost(record).rows)

    assert rows["Trials"] == ("36", "2")
    assert rows["Teacher steps"] == ("360,000", tables.NOTHING)
    assert rows["Floating-point operations"] == ("1.2e+18", tables.NOTHING)
    assert rows["Hours"] == ("12.34", "3.40")


def test_cost_may_be_unknown(record: dict[str, Any]) -> None:
    record["cost"] |= {"operations": None, "hours": None}

    rows = dict((row[0], row[1:]) for row in trials.cost(record).rows)

    assert rows["Hours"] == (tables.NOTHING, "3.40")


def test_csv_holds_every_cell_in_percent(
    record: dict[str, Any], write: Write, tmp_path: pathlib.Path
) -> None:
    record["columns"][4]["data"]["official"] = False
    write()

    rows = {(row["row"], row["column"]): row for row in _csv(tmp_path)}

    assert len(rows) == 24
    cell = rows["mobilenet_v2_remem", "cifar100"]
    assert float(cell["student_mean"]) == pytest.approx(81.5)
    assert float(cell["student_deviation"]) == pytest.approx(statistics.stdev([80, 83]), abs=1e-4)
    assert (cell["student_seeds"], cell["student_paper"]) == ("2", "80.2")
    assert float(cell["student_difference"]) == pytest.approx(1.3)
    unofficial = rows["mobilenet_v2_remem", "pcam"]
    assert (unofficial["student_paper"], unofficial["student_difference"]) == ("91.2", "")
    assert unofficial["student_deviation"] == ""
    assert rows["efficientnet_v2_remem", "pcam"]["student_mean"] == ""


def test_names_are_not_formulas_in_the_csv(
    record: dict[str, Any], write: Write, tmp_path: pathlib.Path
) -> None:
    record["rows"][0]["title"] = '=HYPERLINK("http://evil")\n\udcff'
    write()

    assert _csv(tmp_path)[0]["row_title"] == '\'=HYPERLINK("http://evil") \N{REPLACEMENT CHARACTER}'


def test_page_runs_no_script_and_requests_nothing(write: Write, hostile: dict[str, Any]) -> None:
    page = Page(write()[0])

    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [name for name, _ in page.attributes if name in ("src", "href", "style")]
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


@pytest.mark.parametrize("fixture", ["record", "hostile"])
def test_page_closes_all_tags(write: Write, request: pytest.FixtureRequest, fixture: str) -> None:
    request.getfixturevalue(fixture)

    page = Page(write()[0])

    assert page.open == page.crossed == []


def test_rows_of_the_page_span_the_columns(record: dict[str, Any], write: Write) -> None:
    page = Page(write()[0])

    # Heads, then students and teachers under the first head; two groups of lines.
    assert page.rows[:5] == [13, 12, 13, 13, 13]


def test_hostile_names_are_text_in_the_page(write: Write, hostile: dict[str, Any]) -> None:
    page = Page(write()[0])

    # Title twice, mini, metric, group, row, column, data, missing, search, settings, trials, ...
    assert page.text.count('<script>alert("1")</script> $\\frac{$ | `x`') >= 20


def test_hostile_names_are_escaped_in_markdown(write: Write, hostile: dict[str, Any]) -> None:
    text = write()[1]

    assert "<" not in text
    assert not re.search(r"(?<!\\)[`$]", text)
    assert not re.search(r"(?<!\\)\[", text)
    assert "\u202e" not in text
    assert text.startswith('# &lt;script&gt;alert("1")&lt;/script&gt; \\$\\\\frac{\\$ \\| \\`x\\`')


@pytest.mark.parametrize("fixture", ["record", "hostile"])
def test_markdown_tables_have_the_same_columns_in_each_line(
    write: Write, request: pytest.FixtureRequest, fixture: str
) -> None:
    request.getfixturevalue(fixture)

    tables = _markdown_tables(write()[1])

    # Results, gains, missing, data, cost, selected, trials, versions; more where some are on test.
    assert len(tables) == (8 if fixture == "record" else 13)
    for lines in tables:
        assert len({_columns(line) for line in lines}) == 1


def test_the_same_input_gives_the_same_bytes(write: Write, tmp_path: pathlib.Path) -> None:
    write()
    first = [(tmp_path / name).read_bytes() for name in ALL_FILES]
    write()

    assert [(tmp_path / name).read_bytes() for name in ALL_FILES] == first
    assert not list(tmp_path.glob("*.partial"))


def test_sections_come_in_their_order(write: Write) -> None:
    heads = re.findall(r"^#+ (.*)$", write()[1], flags=re.MULTILINE)

    assert heads == [
        "Table 3: efficient students",
        "Results, in the layout of the paper's Table 3",
        "Gains over the baseline, in points",
        "Missing results",
        "Data",
        "Search",
        "Cost",
        "Selected settings",
        "All trials",
        "Differs from the paper",
        "Versions",
    ]


def test_both_files_have_the_same_numbers(record: dict[str, Any], write: Write) -> None:
    page, text = write()

    cells = ("81.50 (sd 2.12)", "92.00 (sd 1.41)", tables.NOTHING)
    assert "".join(f"<td>{cell}</td>" for cell in cells[:2]) in page
    assert f"| MobileNetV2: ReMem | {cells[0]} | {cells[1]} | missing |" in text


def test_unofficial_data_are_warned_of_in_both_files(record: dict[str, Any], write: Write) -> None:
    record["columns"][1]["data"]["official"] = False

    for content in write():
        assert "For Caltech-101 the numbers of images are not those of the official" in content


def test_a_study_that_has_not_started_is_reported(record: dict[str, Any], write: Write) -> None:
    record |= {"cells": [], "trials": [], "missing": [], "versions": {}}
    for column in record["columns"]:
        column["data"] = None

    page, text = write()

    assert "Cells: 0 of 24 complete, 0 partial, 24 missing." in text
    assert Page(page).open == []


def test_a_missing_record_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(checks.SettingError, match=r"study\.json does not exist"):
        report.write_study(tmp_path)


def test_another_format_is_rejected(
    record: dict[str, Any], write: Write, tmp_path: pathlib.Path
) -> None:
    record["format"] = 2

    with pytest.raises(checks.SettingError, match=r"must be one of 1; got 2"):
        write()
    assert not (tmp_path / "study.md").exists()


def test_the_record_is_not_changed(record: dict[str, Any], write: Write) -> None:
    before = copy.deepcopy(record)

    write()
    results_table.comma_separated(record)

    assert record == before
    assert paper.cell(3, "mobilenet_v2_remem", "cifar100") == paper.Record(3, 80.2, 92.5)


def test_a_trial_of_another_machine_shows_its_copy(record: dict[str, Any]) -> None:
    record["trials"][0] |= {"worker": "far", "folder": "/x", "copy": "s3://bucket/a1/final"}

    rows = trials.tried(record).rows

    assert [cell for row in rows for cell in row if "far" in str(cell)] == [
        "far: s3://bucket/a1/final"
    ]
