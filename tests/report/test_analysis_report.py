"""Information in reports: rankings, and teachers of runs and studies."""

import copy
import csv
import json
import pathlib
from typing import Any

import pytest

from remem_jax import report
from remem_jax.checks import SettingError
from remem_jax.report import information
from remem_jax.report.analysis import rankings
from remem_jax.report.run import information as run_information
from remem_jax.report.study import information as study_information

HOSTILE = '<script>alert("1")</script> $\\frac{$ \u202e'


def _model(title: str, *excess: float, slope: float = 0.0, bound: float | None = None) -> Any:
    """Returns a model with the given excess for each seed."""
    mean = sum(excess) / len(excess)
    return {
        "title": title,
        "loss": mean + 0.5,
        "floor": 0.5,
        "excess": mean,
        "deviation": 0.001,
        "slope": slope,
        "last": 5,
        "info_nce": None
        if bound is None
        else {"bound": bound, "deviation": 0.25, "batch": 64, "noise": 6.0},
        "seeds": [{"seed": seed, "excess": value} for seed, value in enumerate(excess)],
    }


def _setting(*models: Any, rate: float = 1e-3, beta: float = 0.999, aligned: bool = True) -> Any:
    return {
        "learning_rate": rate,
        "second_beta": beta,
        "align_corners": aligned,
        "models": list(models),
    }


WEAK, STRONG = _model("weak", 0.05, 0.07), _model("strong", 0.02, 0.04)


def test_a_ranking_starts_with_the_most_information() -> None:
    assert rankings.ranking(_setting(WEAK, STRONG)) == ("strong", "weak")


def test_a_ranking_of_one_setting_is_not_called_stable() -> None:
    text = rankings.sentences([_setting(WEAK, STRONG)])[0]

    assert text == (
        "The ranking by information is strong before weak, measured with one setting of the "
        "decoders."
    )


def test_a_ranking_shared_by_all_settings_is_called_stable() -> None:
    other = _setting(STRONG, _model("weak", 0.9, 0.8), rate=3e-3)

    text = rankings.sentences([_setting(WEAK, STRONG), other])[0]

    assert "strong before weak with all 2 settings" in text
    assert text.endswith("does not depend on them.")


def test_the_settings_that_change_a_ranking_are_named() -> None:
    turned = _setting(_model("weak", 0.01, 0.01), STRONG, beta=0.9, aligned=False)
    same = _setting(WEAK, STRONG, rate=3e-3)

    text = rankings.sentences([_setting(WEAK, STRONG), turned, same])[0]

    assert text == (
        "The ranking by information depends on the decoders: it is strong before weak with 2 of 3 "
        "settings, but weak before strong with rate 0.001, beta2 0.9, half-pixel."
    )


def test_neighbours_in_the_ranking_are_compared_for_each_seed() -> None:
    close = _model("close", 0.01, 0.045)  # Ahead of strong only with the first seed.

    text = rankings.sentences([_setting(WEAK, STRONG, close)])[1]

    assert text == (
        "close is ahead of strong by 0.00250 nats per sub-pixel, for 1 of 2 seeds of the "
        "decoder; strong is ahead of weak by 0.03000 nats per sub-pixel, for 2 of 2 seeds of "
        "the decoder."
    )


@pytest.mark.parametrize(
    ("slopes", "finished"),
    [
        ((0.0, 0.0), True),
        ((-0.1, -0.1), True),  # A common gain does not change the ranking.
        ((-0.0029, 0.0), True),  # 5 of them are below half of 0.03.
        ((-0.0031, 0.0), False),
        ((0.0016, -0.0016), False),
    ],
)
def test_decoders_have_converged_if_their_remaining_change_is_below_half_a_gap(
    slopes: tuple[float, float], *, finished: bool
) -> None:
    models = [
        {**model, "slope": slope} for model, slope in zip((WEAK, STRONG), slopes, strict=True)
    ]

    text = rankings.sentences([_setting(*models), _setting(WEAK, STRONG, rate=0.5)])[2]

    assert text.startswith(f"With {2 if finished else 1} of 2 settings")
    assert ("Exceptions: rate 0.001" in text) != finished
    assert "rate 0.5" not in text


@pytest.mark.parametrize(("of_weak", "verdict"), [(1.5, "agrees"), (4.0, "does not agree")])
def test_info_nce_agrees_if_its_ranking_is_the_same(of_weak: float, verdict: str) -> None:
    models = _model("weak", 0.05, bound=of_weak), _model("strong", 0.02, bound=3.0)

    text = rankings.sentences([_setting(*models)])[-1]

    assert f"batches of 64, {verdict} with this ranking" in text
    strong, weak = text.index("strong 3.00 ± 0.25"), text.index(f"weak {of_weak:.2f} ± 0.25")
    assert (strong < weak) == (verdict == "agrees")


def test_info_nce_is_not_mentioned_if_not_measured() -> None:
    assert not [text for text in rankings.sentences([_setting(WEAK, STRONG)]) if "InfoNCE" in text]


def test_a_single_model_has_no_ranking() -> None:
    texts = rankings.sentences([_setting({**WEAK, "slope": -0.002})])

    assert texts == [
        "Extrapolated over as many evaluations again, the excess would change by -0.01000."
    ]


def test_the_table_of_rankings_has_a_row_for_each_measurement() -> None:
    rankings_table = rankings.table([_setting(WEAK, STRONG), _setting(STRONG, WEAK, rate=3e-3)])

    assert [row[1] for row in rankings_table.rows] == ["weak", "strong", "strong", "weak"]
    assert rankings_table.rows[0][2:5] == ("0.56000", "0.06000", "0.00100")


def _information(excess: float) -> dict[str, Any]:
    return {
        "excess": excess,
        "deviation": 0.001,
        "slope": -0.002,
        "last": 5,
        "info_nce": {"bound": 2.5},
    }


def test_each_teacher_of_a_run_is_a_point_with_its_best_student(results: dict[str, Any]) -> None:
    results["teachers"][1]["information"] = _information(0.125)

    (point,) = information.points(results)

    assert point == {
        "method": "remem",
        "step": 200,
        "error": pytest.approx(0.06),
        "excess": 0.125,
        "deviation": 0.001,
        "change": pytest.approx(-0.01),
        "info_nce": 2.5,
        "student": 0.95,
    }


def test_a_diverged_student_is_never_the_best(results: dict[str, Any]) -> None:
    results["teachers"][1]["information"] = _information(0.125) | {"info_nce": None}
    results["students"][1]["diverged"] = True
    (with_one,) = information.points(results)
    results["students"][0]["diverged"] = True
    (with_none,) = information.points(results)

    assert (with_one["student"], with_none["student"]) == (0.91, None)
    assert with_one["info_nce"] is None


def _write(run: pathlib.Path, results: dict[str, Any]) -> str:
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write(run)
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_report_of_a_run_shows_its_teachers_on_a_plane(
    run: pathlib.Path, results: dict[str, Any]
) -> None:
    for row, excess in zip(results["teachers"], (0.25, 0.125), strict=True):
        row["information"] = _information(excess)

    page = _write(run, results)

    assert "<strong>Information plane.</strong>" in page
    assert "Information of the teachers, on validation" in page
    with (run / "figures" / "information_plane.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], float(row["excess"])) for row in rows] == [
        ("step 100", 0.25),
        ("step 200", 0.125),
    ]


def test_a_run_without_information_has_no_plane(run: pathlib.Path, results: dict[str, Any]) -> None:
    page = _write(run, results).replace(run.name, "")

    assert "nformation" not in page
    assert not (run / "figures").exists()
    assert not list(run_information.figures(results))
    assert run_information.table(results) is None


def _point(step: int = 100, excess: float = 0.125, **pruned: int) -> dict[str, Any]:
    return {
        "method": "finetune",
        "step": step,
        "error": 0.25,
        "excess": excess,
        "deviation": None,
        "change": -0.01,
        "info_nce": None,
        "student": 0.5,
        "pruned": {"MLP": 0, "attention": 0} | pruned,
    }


def _trial(row: str, column: str, *points: Any, fraction: float = 1.0) -> dict[str, Any]:
    return {
        "trial": f"{row} {column} {fraction}",
        "row": row,
        "column": column,
        "fraction": fraction,
        "teachers": list(points),
    }


def _study(*trials: Any, data: tuple[str, ...] = ("Digits", "Digits")) -> dict[str, Any]:
    """Returns a study with rows a and b and a column for each data set."""
    return {
        "rows": [{"name": name, "title": f"Row {name}"} for name in "ab"],
        "columns": [
            {"name": str(number), "title": f"Column {number}", "data": {"title": title}}
            for number, title in enumerate(data)
        ],
        "trials": list(trials),
    }


def _series(drawn: Any) -> list[str]:
    return [row[drawn.columns.index("series")] for row in drawn.rows]


def test_a_study_has_a_plane_for_each_data_set() -> None:
    study = _study(
        _trial("a", "0", _point(100), _point(200)), _trial("a", "1", _point()), data=("X", "Y")
    )

    first, second = study_information.figures(study)

    assert (first.name, first.title) == ("information_plane", "Information plane: X")
    assert (second.name, second.title) == ("information_plane_1", "Information plane: Y")
    assert [len(first.rows), len(second.rows)] == [2, 1]


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([("a", "0")], ["Row a"]),
        ([("a", "0"), ("b", "0")], ["Row a", "Row b"]),
        ([("a", "0"), ("a", "1")], ["Column 0", "Column 1"]),
        ([("a", "0"), ("b", "1")], ["Row a, Column 0", "Row b, Column 1"]),
    ],
)
def test_a_series_is_named_by_what_varies(
    trials: list[tuple[str, str]], expected: list[str]
) -> None:
    (plane,) = study_information.figures(_study(*(_trial(*trial, _point()) for trial in trials)))

    assert _series(plane) == expected


def test_shortened_trials_and_trials_without_information_are_not_shown() -> None:
    study = _study(
        _trial("a", "0", _point(100)),
        _trial("a", "0", _point(50), fraction=0.25),
        _trial("b", "0"),
    )

    (plane,) = study_information.figures(study)
    table = study_information.table(study)

    assert len(plane.rows) == 1
    assert table is not None
    assert [row[:2] for row in table.rows] == [("Row a", "100")]
    assert not list(study_information.figures(_study(_trial("b", "0"))))
    assert study_information.table(_study(_trial("b", "0"))) is None


def test_pruned_teachers_are_grouped_by_kind_and_unpruned_ones_are_in_each_group() -> None:
    study = _study(
        _trial("a", "0", _point(100, 0.9), _point(200, 0.1)),
        _trial("b", "0", _point(100, 0.9, MLP=2), _point(200, 0.2, MLP=2)),
        _trial("b", "0", _point(200, 0.3, attention=4)) | {"trial": "another"},
    )

    _, pruning = study_information.figures(study)

    assert pruning.name == "pruning"
    # The last teacher of each trial.
    assert sorted([*row[:2], row[3]] for row in pruning.rows) == [
        ["MLP", 0, 0.1],
        ["MLP", 2, 0.2],
        ["attention", 0, 0.1],
        ["attention", 4, 0.3],
    ]


def test_pruning_is_not_drawn_without_pruned_teachers() -> None:
    assert [
        figure.name for figure in study_information.figures(_study(_trial("a", "0", _point())))
    ] == ["information_plane"]


@pytest.fixture
def study_json(tmp_path: pathlib.Path) -> dict[str, Any]:
    """The content of study.json of a figure: one trial with measured teachers."""
    data = {
        "title": HOSTILE,
        "metric": "top1",
        "official": None,
        "classes": 10,
        "examples": {"train": 10, "validation": 5, "test": 5},
        "image_size": 32,
    }
    trial = _trial("a", "0", _point(MLP=1), _point(200)) | {
        "seed": 0,
        "settings": {},
        "state": "done",
        "reason": "",
        "validation": 0.5,
        "teacher_steps": 200,
        "student_steps": 80,
        "students": 2,
        "seconds": 4.0,
        "device": "2 x cpu",
        "worker": "here",
        "folder": None,
    }
    return {
        "format": 1,
        "title": "Figure 1: planes",
        "table": 0,
        "mini": "",
        "rows": [{"name": name, "title": HOSTILE + name, "group": ""} for name in "ab"],
        "columns": [{"name": "0", "title": HOSTILE, "data": data}],
        "seeds": [0],
        "cells": [],
        "missing": [{"row": "a", "column": "0", "seed": 0, "why": "begun"}],
        "trials": [trial, copy.deepcopy(trial) | {"row": "b", "trial": "second"}],
        "search": {"kind": "grid", "text": "One setting."},
        "cost": {
            "trials": 1,
            "teacher_steps": 200,
            "student_steps": 80,
            "operations": 1e9,
            "hours": 0.5,
            "spent_hours": 0.1,
        },
        "differs": [],
        "versions": {},
    }


def test_hostile_names_are_text_in_the_planes_of_a_study(
    study_json: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study_json), encoding="utf-8")

    report.write_study(tmp_path)

    page = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert "Information plane: &lt;script&gt;" in page
    assert "<script" not in page
    assert "Information of the teachers, on validation" in page
    assert (tmp_path / "figures" / "information_plane.svg").exists()
    assert "<script" not in (tmp_path / "figures" / "information_plane.svg").read_text()


@pytest.mark.parametrize("content", [None, {"format": 0}])
def test_an_analysis_without_results_of_this_format_has_no_report(
    content: Any, tmp_path: pathlib.Path
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(SettingError, match=r"results\.json"):
        report.write_analysis(tmp_path)
