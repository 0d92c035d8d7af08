"""Figures and correlations of a study, of a record in which the truth is known."""

import csv
import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from scipy import stats

from remem_jax import report
from remem_jax.report.study import differences, overview, predictors
from remem_jax.statistics import seeds

GRID = [(rho, alpha) for rho in (0.05, 0.1, 0.2) for alpha in (0.8, 0.9)]
SEEDS, COLUMNS = (0, 1, 2), ("resnet", "lite0")
POINTS = {
    "alone": [{}],
    "finetune": [{}],
    "sam": [{"rho": rho} for rho in (0.05, 0.1, 0.2)],
    "remem": [{"rho": rho, "mlp_weight": alpha} for rho, alpha in GRID],
}
TITLES = {
    "alone": "Pretrained, no teacher",
    "finetune": "Fine-tuning",
    "sam": "SAM only",
    "remem": "ReMem",
}


def _checkpoint(step: int, information: float, student: float, error: float) -> dict[str, Any]:
    return {
        **{"step": step, "error": error, "excess": -information, "student": student},
        **{"calibration_error": 0.05 + error / 3, "temperature": 1.0 + error, "radius": 0.1},
        **{"calibrated_error": 0.02, "sharpness": 0.3 - information / 20},
    }


def make() -> dict[str, Any]:
    """Returns a study in which a student's accuracy increases with its teacher's information."""
    rng = np.random.default_rng(0)
    trials: list[dict[str, Any]] = []
    for column, seed, (row, points) in itertools.product(COLUMNS, SEEDS, POINTS.items()):
        for settings in points:
            information = rng.normal(4 * settings.get("rho", 0.02) * (row != "finetune"), 0.1)
            student = 0.82 + 0.02 * information + 0.01 * seed + rng.normal(0, 0.003)
            student -= 0.03 * (row == "alone")
            error = 0.12 + 0.1 * settings.get("rho", 0) + rng.normal(0, 0.005)
            checkpoints = [
                _checkpoint(step, information * step / 400, student - (400 - step) / 1e4, error)
                for step in (200, 400)
                if row != "alone"
            ]
            trials.append(
                {
                    **{"trial": f"{len(trials):016x}", "number": len(trials), "row": row},
                    **{"column": column, "seed": seed, "fraction": 1.0, "settings": settings},
                    **{"state": "done", "reason": "", "validation": student, "teachers": []},
                    **{"checkpoints": checkpoints, "teacher_steps": 400, "student_steps": 800},
                    "selected": {
                        "settings": {"teacher_step": 400 if checkpoints else None},
                        "students": [
                            {
                                "seed": 0,
                                "validation": {"top1": student},
                                "test": {"top1": student + rng.normal(0, 0.003)},
                            }
                        ],
                        "teacher": {"validation": {"top1": 1 - error}, "test": {"top1": 0.87}}
                        if checkpoints
                        else None,
                    },
                    **{"students": 2, "seconds": 600.0, "device": "1 x H100", "worker": "one"},
                    "folder": f"/study/trials/{len(trials):016x}",
                }
            )
    data = {"title": "Caltech-101", "metric": "top1", "official": True, "classes": 102}
    data |= {"examples": {"train": 2754, "validation": 306, "test": 2995}, "image_size": 96}
    titles = {"resnet": "ResNet-18", "lite0": "EfficientNet-Lite0"}
    return {
        **{"format": 1, "title": "The evidence", "table": 0, "mini": "", "baseline": "finetune"},
        "rows": [{"name": name, "title": title, "group": ""} for name, title in TITLES.items()],
        "columns": [{"name": name, "title": titles[name], "data": data} for name in COLUMNS],
        **{"seeds": list(SEEDS), "selection": "validation", "missing": [], "margin": 0.5},
        "claims": [
            {"name": "helps", "title": "ReMem helps", "row": "remem", "baseline": "finetune"},
            {"name": "sam", "title": "SAM is enough", "row": "sam", "baseline": "remem"},
        ],
        "cells": [_cell(row, column, trials) for row in POINTS for column in COLUMNS],
        "trials": trials,
        "search": {"kind": "grid", "text": "The whole grid of each row."},
        "cost": {
            **{"trials": 80, "teacher_steps": 32_000, "student_steps": 64_000},
            **{"operations": 1e18, "hours": 12.0, "spent_hours": len(trials) / 6},
        },
        **{"differs": [], "versions": {"remem_jax": "0.1.0"}},
    }


def _cell(row: str, column: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    replicates = []
    for seed in SEEDS:
        of_cell = [t for t in trials if (t["row"], t["column"], t["seed"]) == (row, column, seed)]
        best = max(of_cell, key=lambda trial: trial["validation"])
        teacher = best["selected"]["teacher"]
        replicates.append(
            {
                **{"seed": seed, "student": best["selected"]["students"][0]["test"]["top1"]},
                **{"teacher": teacher and teacher["test"]["top1"], "trial": best["trial"]},
                **{"validation": best["validation"], "students_of_seeds": [0.8]},
                **{"settings": best["settings"], "trials": len(of_cell), "students": 2},
            }
        )
    return {"row": row, "column": column, "choice": "validation", "replicates": replicates}


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    """The study; tests must not change it."""
    return make()


@pytest.fixture(scope="module")
def folder(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder with the study's report."""
    path = tmp_path_factory.mktemp("study")
    (path / "study.json").write_text(json.dumps(study), encoding="utf-8")
    report.write_study(path)
    return path


def _csv(folder: pathlib.Path, name: str) -> list[dict[str, str]]:
    text = (folder / "figures" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_each_kind_of_figure_is_drawn_for_each_column(folder: pathlib.Path) -> None:
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}

    kinds = ("rows", "rho", "mlp_weight", "predictors")
    assert drawn == {name + suffix for name in kinds for suffix in ("", "_1")}


def test_the_figure_of_rows_has_the_intervals_of_the_table(
    study: dict[str, Any], folder: pathlib.Path
) -> None:
    rows = {row["row"]: row for row in _csv(folder, "rows")}
    gaps = {gap["row"]: gap for gap in differences.over_seeds(study) if gap["column"] == COLUMNS[0]}

    assert rows.keys() == set(TITLES.values())
    for name, gap in gaps.items():
        drawn = [float(rows[TITLES[name]][field]) for field in ("gain", "gain_low", "gain_high")]
        assert drawn == pytest.approx([gap["mean"], gap["low"], gap["high"]])
    baseline = rows["Fine-tuning"]
    assert (baseline["gain"], baseline["gain_seeds"]) == ("", "0")
    shares = [r["student"] for r in study["cells"][2]["replicates"]]  # Fine-tuning, first column.
    expected = seeds.mean(shares)
    assert float(baseline["low"]) == pytest.approx(expected.low)


def test_students_are_drawn_against_rho_for_each_alpha(
    study: dict[str, Any], folder: pathlib.Path
) -> None:
    rows = _csv(folder, "rho")

    series = {row["series"] for row in rows}
    alphas = [f"ReMem, alpha {alpha}" for alpha in ("0.8", "0.9")]
    assert series == {"SAM only", *alphas}
    (row,) = [r for r in rows if (r["series"], r["value"]) == (alphas[0], "0.2")]
    chosen = [
        trial
        for trial in study["trials"]
        if (trial["row"], trial["column"]) == ("remem", COLUMNS[0])
        and trial["settings"] == {"rho": 0.2, "mlp_weight": 0.8}
    ]
    assert float(row["student_mean"]) == pytest.approx(np.mean([t["validation"] for t in chosen]))
    teachers = [t["selected"]["teacher"]["validation"]["top1"] for t in chosen]
    assert float(row["teacher_mean"]) == pytest.approx(np.mean(teachers))


def test_over_other_axes_the_best_on_validation_counts(study: dict[str, Any]) -> None:
    rates = [
        {**trial, "settings": {**trial["settings"], "learning_rate": rate}, "validation": share}
        for trial in study["trials"]
        if trial["row"] == "sam"
        for rate, share in ((0.01, 0.5), (0.1, 0.75))
    ]

    (first, _) = overview.against_settings({**study, "trials": rates})

    means = {row[list(first.columns).index("student_mean")] for row in first.rows}
    assert means == {0.75}


def test_only_seeds_that_are_searched_are_drawn_against_a_setting(study: dict[str, Any]) -> None:
    searched = {**study["search"], "seeds": [SEEDS[1]]}
    of_seed = [trial for trial in study["trials"] if trial["seed"] == SEEDS[1]]

    drawn = list(overview.against_settings({**study, "search": searched}))

    alone = list(overview.against_settings({**study, "trials": of_seed}))
    assert [figure.rows for figure in drawn] == [figure.rows for figure in alone]


def test_a_study_that_varies_neither_alpha_nor_rho_has_no_such_figure(
    study: dict[str, Any],
) -> None:
    fixed = [trial for trial in study["trials"] if trial["row"] in ("alone", "finetune")]

    assert list(overview.against_settings({**study, "trials": fixed})) == []


def test_information_is_correlated_with_the_students_within_each_seed(
    study: dict[str, Any],
) -> None:
    rows = {(row["column"], row["predictor"]): row for row in predictors.correlations(study)}

    row = rows[COLUMNS[0], "information"]
    expected = []
    for seed in SEEDS:
        points = [
            (-teacher["excess"], teacher["student"])
            for trial in study["trials"]
            if (trial["column"], trial["seed"]) == (COLUMNS[0], seed)
            for teacher in trial["checkpoints"]
        ]
        expected.append(stats.spearmanr(*zip(*points, strict=True)).statistic)
    assert row["value"] == pytest.approx(np.mean(expected))
    # Ten recipes have a teacher, each with two checkpoints, for three seeds.
    assert (row["points"], row["clusters"], row["blocks"]) == (60, 10, 3)
    assert 0.5 < row["low"] < row["value"] < row["high"] <= 1
    assert rows[COLUMNS[0], "accuracy"]["value"] < 0
    assert {name for _, name in rows} == {measure.name for measure in predictors.PREDICTORS}


def test_information_is_correlated_at_equal_accuracy_of_the_teacher(study: dict[str, Any]) -> None:
    rows = {(row["column"], row["predictor"]): row for row in predictors.correlations(study)}

    row = rows[COLUMNS[0], "information_at_accuracy"]
    expected = []
    for seed in SEEDS:
        points = [
            (-teacher["excess"], teacher["student"], 1 - teacher["error"])
            for trial in study["trials"]
            if (trial["column"], trial["seed"]) == (COLUMNS[0], seed)
            for teacher in trial["checkpoints"]
        ]
        # The recursive formula of partial correlation.
        xy, xz, yz = (stats.spearmanr(points).statistic[i, j] for i, j in ((0, 1), (0, 2), (1, 2)))
        expected.append((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))
    assert row["value"] == pytest.approx(np.mean(expected))
    assert (row["points"], row["clusters"], row["blocks"]) == (60, 10, 3)


def test_teachers_are_ranked_apart_if_their_students_were_trained_in_another_way(
    study: dict[str, Any],
) -> None:
    def named(trial: dict[str, Any]) -> dict[str, Any]:
        own = f"{trial['row']} {trial['settings']}"
        return {**trial, "recipes": {"teacher": own, "student": "kd"}}

    trials = [named(trial) for trial in study["trials"]]
    # The same teachers, whose students are worse; of one recipe for each seed: too few to rank.
    others = [
        {
            **trial,
            "recipes": {**trial["recipes"], "student": "other"},
            "checkpoints": [{**teacher, "student": 0.1} for teacher in trial["checkpoints"]],
        }
        for trial in trials
        if trial["row"] == "finetune"
    ]

    rows = predictors.correlations({**study, "trials": trials + others})

    assert rows == predictors.correlations(study)


def test_measures_that_are_not_on_record_are_left_out(study: dict[str, Any]) -> None:
    older = [
        {
            **{name: value for name, value in trial.items() if name != "checkpoints"},
            "teachers": [
                {name: teacher[name] for name in ("step", "error", "excess", "student")}
                for teacher in trial["checkpoints"]
            ],
        }
        for trial in study["trials"]
    ]

    rows = predictors.correlations({**study, "trials": older})

    measured = {"information", "information_at_accuracy", "accuracy"}
    assert {row["predictor"] for row in rows} == measured
    now = {(row["column"], row["predictor"]): row for row in predictors.correlations(study)}
    assert all(row == now[row["column"], row["predictor"]] for row in rows)


def test_trials_with_fewer_steps_are_not_correlated(study: dict[str, Any]) -> None:
    short = [{**trial, "fraction": 0.25} for trial in study["trials"]]

    assert predictors.correlations({**study, "trials": short}) == []
    assert predictors.table({**study, "trials": short}) is None


def test_the_report_has_the_correlations(study: dict[str, Any], folder: pathlib.Path) -> None:
    text = (folder / "study.md").read_text(encoding="utf-8")

    (row, *_) = predictors.correlations(study)
    limits = f"{row['low']:+.2f} to {row['high']:+.2f}"
    assert (
        f"| ResNet-18 | Information, nats per sub-pixel | {row['value']:+.2f} | {limits} | 60 |"
        in text
    )
    assert "draws whole recipes" in text
