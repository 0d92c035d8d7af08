"""The summary of a study, from hand-made records of its trials."""

import csv
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from configs import study
from remem_jax import paired, report
from remem_jax.checks import SettingError
from remem_jax.report.study import trials
from remem_jax.settings import deciding, plain
from remem_jax.storage import identity
from remem_jax.study import cost, queue, scheduling, search, space, summary
from remem_jax.study.space import Trial
from tests import tiny_run

TOTAL = cost.Total(5, 500, 1000, 10, 1e9, 0.5)


class Shared(queue.Queue):
    """A queue with given results, without a storage."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}

    def states(self, keys: Any) -> dict[str, str]:
        states = dict.fromkeys(keys, "waiting") | dict.fromkeys(self.running, "running")
        return states | dict.fromkeys(self.given, "done") | dict.fromkeys(self.failed, "failed")

    def records(self, keys: Any = None) -> dict[str, Any]:
        return {k: record for k, record in self.given.items() if keys is None or k in keys}

    def failures(self, keys: Any) -> dict[str, str]:
        return {key: reason for key, reason in self.failed.items() if key in keys}

    def numbers(self, keys: Any) -> dict[str, int]:
        return {key: number for number, key in enumerate(keys)}

    def running_workers(self, keys: Any) -> dict[str, dict[str, Any]]:
        worker = {"host": "here", "pid": 7, "since": 0.0, "died": False}
        return {key: worker for key in keys if key in self.running}


@pytest.fixture
def config() -> ConfigDict:
    """A study of three values of rho and two seeds, with a from-scratch baseline."""
    rows = study.rows("scratch", "finetune", "remem")
    config = study.make("Digits", rows, {"digits": study.column("Digits")}, base=tiny_run.digits())
    config.only = "scratch,remem"
    config.grid = ConfigDict({"rho": (0.05, 0.5, 1.0)})
    config.search.near = ConfigDict()
    config.seeds = (0, 1)
    return config


@pytest.fixture
def shared() -> Shared:
    return Shared()


def _metrics(top1: float, loss: float = 1.0) -> dict[str, Any]:
    return {"top1": top1, "loss": loss, "confused": []}


def _record(
    trial: Trial,
    validation: float,
    test: float,
    *,
    loss: float = 1.0,
    on_test: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Returns the fields of results.json that a study reads, and where the trial ran."""
    distilled = trial.row != "scratch"
    student = {"validation": _metrics(validation, loss), "test": _metrics(test)}
    selected = {
        "teacher_step": 120 if distilled else None,
        "student": 1,
        "loss": "kd" if distilled else None,
        "learning_rate": 0.1,
        "temperature": 4.0,
        "weight": 0.5,
        "seed": 0,
    }
    row = {
        "method": trial.config.methods[0],
        "selected": selected,
        "student": student,
        "seeds": [{"seed": 0, "validation": _metrics(validation), "test": _metrics(test)}],
        "teacher": {"validation": _metrics(0.5), "test": _metrics(0.75)} if distilled else None,
        "on_test": None,
    }
    if on_test:
        row["on_test"] = {
            "selected": selected | {"teacher_step": 40},
            "student": {"validation": _metrics(on_test[0]), "test": _metrics(on_test[1])},
            "seeds": [{"seed": 0, "test": _metrics(on_test[1])}],
            "teacher": {"test": _metrics(0.625)} if distilled else None,
        }
    return {
        "config": {**json.loads(json.dumps(deciding(trial.config))), "differs": ["By hand."]},
        "data": {
            "title": "scikit-learn's digits",
            "metric": "top1",
            "official": None,
            "classes": 10,
            "examples": {"train": 1150, "validation": 287, "test": 360},
            "image_size": 32,
        },
        "methods": [row],
        "teachers": [{"method": row["method"], "step": 120, "validation": _metrics(0.5)}]
        if distilled
        else [],
        "students": [
            {
                "method": row["method"],
                "teacher_step": selected["teacher_step"],
                "diverged": False,
                "validation": _metrics(accuracy),
            }
            for accuracy in (validation, validation - 0.125)
        ],
        "seconds": {"teachers/remem": 1.5, "students/remem": 2.5},
        "device": {"platform": "cpu", "kind": "cpu", "count": 2},
        "versions": {"remem_jax": "0.1.0"},
        "worker": "here",
        "folder": f"/study/trials/{trial.key}",
    }


def _trials(config: ConfigDict, row: str = "remem", seed: int = 0) -> list[Trial]:
    return [t for t in space.trials(config) if (t.row, t.seed) == (row, seed)]


def _make(config: ConfigDict, shared: Shared) -> dict[str, Any]:
    searched = search.Search(config.search, space.trials(config), space.grid_sizes(config))
    given = shared.given.items()
    values = {key: record["methods"][0]["student"]["validation"]["top1"] for key, record in given}
    return summary.make(config, searched, searched.schedule(values).trials, shared, TOTAL)


def _replicates(result: dict[str, Any], row: str, choice: str = "validation") -> list[Any]:
    return [
        replicate
        for cell in result["cells"]
        if (cell["row"], cell["choice"]) == (row, choice)
        for replicate in cell["replicates"]
    ]


def test_a_cell_shows_the_test_result_of_the_best_on_validation(
    config: ConfigDict, shared: Shared
) -> None:
    for trial, shares in zip(_trials(config), ((0.5, 0.9), (0.7, 0.4), (0.6, 0.8)), strict=True):
        shared.given[trial.key] = _record(trial, *shares)

    (result,) = _replicates(_make(config, shared), "remem")

    best = _trials(config)[1]
    assert (result["trial"], result["validation"], result["student"]) == (best.key, 0.7, 0.4)
    assert (result["teacher"], result["students_of_seeds"]) == (0.75, [0.4])
    assert (result["trials"], result["students"]) == (3, 6)


def test_the_settings_of_a_cell_are_those_of_its_teacher_and_its_student(
    config: ConfigDict, shared: Shared
) -> None:
    trial = _trials(config)[1]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    (result,) = _replicates(_make(config, shared), "remem")

    assert result["settings"] == {
        "rho": 0.5,
        "teacher_step": 120,
        "student.loss": "kd",
        "student.learning_rate": 0.1,
        "student.temperature": 4.0,
        "student.weight": 0.5,
    }


def test_ties_go_to_the_lower_loss(config: ConfigDict, shared: Shared) -> None:
    for trial, loss in zip(_trials(config), (1.0, 0.5, 0.75), strict=True):
        shared.given[trial.key] = _record(trial, 0.5, 0.5, loss=loss)

    (result,) = _replicates(_make(config, shared), "remem")

    assert result["trial"] == _trials(config)[1].key


def test_the_choice_on_test_is_reported_too(config: ConfigDict, shared: Shared) -> None:
    shares = ((0.7, 0.4, (0.6, 0.5)), (0.6, 0.5, (0.3, 0.8)), (0.5, 0.3, (0.2, 0.6)))
    for trial, (validation, test, on_test) in zip(_trials(config), shares, strict=True):
        shared.given[trial.key] = _record(trial, validation, test, on_test=on_test)
    result = _make(config, shared)

    (by_validation,) = _replicates(result, "remem")
    (by_test,) = _replicates(result, "remem", "test")

    assert (by_validation["trial"], by_validation["student"]) == (_trials(config)[0].key, 0.4)
    assert (by_test["trial"], by_test["student"]) == (_trials(config)[1].key, 0.8)
    assert (by_test["validation"], by_test["teacher"]) == (0.3, 0.625)
    assert by_test["settings"]["teacher_step"] == 40


def test_trials_without_a_choice_on_test_have_no_cell_of_it(
    config: ConfigDict, shared: Shared
) -> None:
    trial = _trials(config)[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    result = _make(config, shared)

    assert {cell["choice"] for cell in result["cells"]} == {"validation"}


def test_each_seed_is_a_replicate_with_its_own_best_trial(
    config: ConfigDict, shared: Shared
) -> None:
    for seed, shares in ((0, (0.5, 0.6, 0.4)), (1, (0.9, 0.7, 0.8))):
        for trial, share in zip(_trials(config, seed=seed), shares, strict=True):
            shared.given[trial.key] = _record(trial, share, share)

    result = _replicates(_make(config, shared), "remem")

    expected = [(0, _trials(config, seed=0)[1].key), (1, _trials(config, seed=1)[0].key)]
    assert [(entry["seed"], entry["trial"]) for entry in result] == expected
    assert [entry["trials"] for entry in result] == [3, 3]


def test_a_trial_from_scratch_has_no_teacher(config: ConfigDict, shared: Shared) -> None:
    (trial,) = _trials(config, "scratch")
    shared.given[trial.key] = _record(trial, 0.5, 0.6)

    (result,) = _replicates(_make(config, shared), "scratch")

    assert (result["teacher"], result["student"]) == (None, 0.6)


def test_a_cell_without_a_result_has_a_reason(config: ConfigDict, shared: Shared) -> None:
    shared.running = {_trials(config, "scratch", 0)[0].key}
    shared.failed = {trial.key: "the loss is nan" for trial in _trials(config, "remem", 0)}
    first = _trials(config, "remem", 1)[0]
    shared.failed[first.key] = "no memory"  # Other trials of the cell are still waiting.

    result = _make(config, shared)["missing"]

    assert {(entry["row"], entry["seed"]): entry["why"] for entry in result} == {
        ("scratch", 0): "running",
        ("scratch", 1): "not run yet",
        ("remem", 0): "failed: the loss is nan",
        ("remem", 1): "not run yet",
    }


def test_every_trial_is_listed_with_its_state(config: ConfigDict, shared: Shared) -> None:
    done, failed, waits = _trials(config)
    shared.given[done.key] = _record(done, 0.7, 0.4)
    shared.failed[failed.key] = "the loss is nan"

    listed = {entry["trial"]: entry for entry in _make(config, shared)["trials"]}

    assert listed.keys() == {trial.key for trial in space.trials(config)}
    states = [listed[trial.key]["state"] for trial in (done, failed, waits)]
    assert states == ["done", "failed", "waiting"]
    assert listed[failed.key]["reason"] == "the loss is nan"
    assert listed[failed.key]["validation"] is None
    assert listed[done.key].pop("recipes").keys() == {"teacher", "student"}
    assert listed[done.key] == {
        "trial": done.key,
        "number": 1,
        "row": "remem",
        "column": "digits",
        "seed": 0,
        "fraction": 1.0,
        "settings": {"rho": 0.05},
        "state": "done",
        "reason": "",
        "teachers": [],
        "checkpoints": [
            {
                "step": 120,
                "error": 0.5,
                "student": 0.7,
                **dict.fromkeys(
                    (
                        *("excess", "calibration_error", "temperature", "calibrated_error"),
                        *("radius", "sharpness"),
                    )
                ),
            }
        ],
        "selected": {
            "settings": {
                "teacher_step": 120,
                "student.loss": "kd",
                "student.learning_rate": 0.1,
                "student.temperature": 4.0,
                "student.weight": 0.5,
            },
            "students": [
                {
                    "seed": 0,
                    "validation": {"top1": 0.7, "loss": 1.0},
                    "test": {"top1": 0.4, "loss": 1.0},
                }
            ],
            "teacher": {
                "validation": {"top1": 0.5, "loss": 1.0},
                "test": {"top1": 0.75, "loss": 1.0},
            },
        },
        "validation": 0.7,
        "teacher_steps": 120,
        "student_steps": 80,
        "students": 2,
        "seconds": 4.0,
        "ascent": None,
        "device": "2 x cpu",
        "worker": "here",
        "folder": f"/study/trials/{done.key}",
        "copy": "",
    }


def test_measured_information_of_teachers_is_listed_with_their_trial(
    config: ConfigDict, shared: Shared
) -> None:
    config.base.teacher.pruned_attention = 3
    done, other, _ = _trials(config)
    record = _record(done, 0.7, 0.4)
    information = {"excess": 0.25, "deviation": 0.125, "slope": -0.5, "last": 2, "info_nce": None}
    record["teachers"][0]["information"] = information
    student = {"method": "remem", "teacher_step": 120, "diverged": False}
    record["students"] = [{**student, "validation": _metrics(share)} for share in (0.6, 0.7)]
    shared.given = {done.key: record, other.key: _record(other, 0.5, 0.5)}

    result = {entry["trial"]: entry["teachers"] for entry in _make(config, shared)["trials"]}

    assert result.pop(done.key) == [
        {
            "method": "remem",
            "step": 120,
            "error": 0.5,
            "excess": 0.25,
            "deviation": 0.125,
            "change": -1.0,
            "info_nce": None,
            "student": 0.7,
            "pruned": {"MLP": 0, "attention": 3},
        }
    ]
    assert not any(result.values())


def test_trials_with_the_same_teacher_or_the_same_students_are_known(
    config: ConfigDict, shared: Shared
) -> None:
    config.rows.other = ConfigDict(study.row("Other", "remem", student={"weights": (0.1,)}))
    config.row_order = (*config.row_order, "other")
    config.only = "remem,other"
    for trial in space.trials(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)

    recipes = {
        (entry["row"], entry["settings"]["rho"], entry["seed"]): entry["recipes"]
        for entry in _make(config, shared)["trials"]
    }

    remem = recipes["remem", 0.5, 0]
    assert recipes["remem", 0.5, 1] == remem  # But for the seed.
    assert recipes["other", 0.5, 0]["teacher"] == remem["teacher"]
    assert recipes["other", 0.5, 0]["student"] != remem["student"]
    assert recipes["remem", 1.0, 0]["teacher"] != remem["teacher"]
    assert recipes["remem", 1.0, 0]["student"] == remem["student"]


def test_cells_that_share_a_trial_have_its_result(config: ConfigDict, shared: Shared) -> None:
    config.rows.alone = ConfigDict(study.row("No teacher", "alone"))  # There are no weights.
    config.row_order, config.only = (*config.row_order, "alone"), "scratch,alone"
    config.seeds = (0,)
    trials = space.trials(config)
    shared.given = {trials[0].key: _record(trials[0], 0.7, 0.4)}

    result = _make(config, shared)

    assert [trial["trial"] for trial in result["trials"]] == [trials[0].key] * 2
    cells = {cell["row"]: cell["replicates"][0]["student"] for cell in result["cells"]}
    assert cells == {"scratch": 0.4, "alone": 0.4}
    assert not [entry for entry in result["missing"] if entry["row"] in ("scratch", "alone")]
    assert (result["progress"], result["cost"]["spent_trials"]) == (None, 1)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_recipe_depends_on_the_initial_weights(
    config: ConfigDict, shared: Shared, role: str
) -> None:
    first, second = _trials(config)[:2]
    of = {name: _record(first, 0.7, 0.4) for name in "ab"}
    of["b"]["identity"] = {role: "a digest"}

    shared.given = {first.key: of["a"], second.key: of["b"]}
    listed = {trial["trial"]: trial["recipes"] for trial in _make(config, shared)["trials"]}

    different = {name for name, key in listed[first.key].items() if listed[second.key][name] != key}
    assert different == {role}


def test_finished_trials_of_rows_that_are_left_out_are_found_by_their_settings(
    config: ConfigDict, shared: Shared
) -> None:
    config.base.teacher.ascent_examples = -1
    every = config.copy_and_resolve_references()
    every.only = ""
    (finetune,) = _trials(every, row="finetune")
    other = every.copy_and_resolve_references()
    other.base.student.steps += 1  # Of another study that has the same name.
    for key, trial in (("a", finetune), ("b", _trials(other, row="finetune")[0])):
        settings = plain(trial.config)
        settings["teacher"]["ascent_examples"] = 8  # That of -1 on these devices.
        shared.given[key] = _record(trial, 0.7, 0.4) | {
            "config": json.loads(
                json.dumps(
                    {
                        **identity.described(settings),
                        "compute_dtype": "float32",  # That of "auto" on this device.
                        "differs": ["By hand."],
                    }
                )
            )
        }

    found = scheduling.LeftOut(config).finished(shared)

    assert [(trial.key, trial.row, trial.seed) for trial in found] == [("a", "finetune", 0)]
    assert not scheduling.LeftOut(every).finished(shared)  # It is one of the search.
    shared.given["c"] = shared.given["a"]  # After the images were changed in place.
    assert not scheduling.LeftOut(config).finished(shared)


def test_rows_that_are_not_selected_are_left_out_not_missing(
    config: ConfigDict, shared: Shared
) -> None:
    for trial in _trials(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)

    table = trials.missing(_make(config, shared))

    assert table is not None
    assert table.rows[-1] == ("1 cell", "", "0, 1", "left out by config.only")
    assert [row[0] for row in table.rows[:-1]] == ["From scratch", "ReMem"]


def test_the_time_of_all_trials_is_added_up(config: ConfigDict, shared: Shared) -> None:
    for trial in _trials(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)  # It takes 4 seconds.

    result = _make(config, shared)["cost"]

    assert result["spent_hours"] == pytest.approx(12 / 3600)
    assert result["hours"] == 0.5


def test_a_cell_shows_only_trials_with_all_steps(config: ConfigDict, shared: Shared) -> None:
    full, short = _trials(config)[0], space.scaled(_trials(config)[0], 0.25)
    shared.given = {full.key: _record(full, 0.5, 0.5), short.key: _record(short, 0.9, 0.9)}

    result = summary.make(
        config, search.Search(config.search, [full]), [short, full], shared, TOTAL
    )

    (replicate,) = _replicates(result, "remem")
    assert replicate["trial"] == full.key
    assert [entry["fraction"] for entry in result["trials"]] == [0.25, 1.0]


def test_a_cell_with_only_short_trials_is_started(config: ConfigDict, shared: Shared) -> None:
    full, short = _trials(config)[0], space.scaled(_trials(config)[0], 0.25)
    shared.given = {short.key: _record(short, 0.9, 0.9)}

    result = summary.make(
        config, search.Search(config.search, [full]), [short, full], shared, TOTAL
    )

    assert result["cells"] == []
    assert [entry["why"] for entry in result["missing"]] == ["started"]


def test_each_deviation_is_listed_once(config: ConfigDict, shared: Shared) -> None:
    for trial in _trials(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)

    result = _make(config, shared)["differs"]

    assert result.count("By hand.") == 1
    assert sum("student.steps is 80" in sentence for sentence in result) == 1


def test_settings_fixed_by_a_method_are_no_deviation(config: ConfigDict, shared: Shared) -> None:
    config.only = "finetune"
    trial = _trials(config, "finetune")[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    result = _make(config, shared)["differs"]

    assert not [sentence for sentence in result if "teacher.rho" in sentence]
    assert not [sentence for sentence in result if "mlp_weight" in sentence]


def test_the_best_of_each_cell_has_a_sentence(config: ConfigDict, shared: Shared) -> None:
    trial = _trials(config)[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4, on_test=(0.6, 0.5))

    (line,) = summary.best(_make(config, shared))

    assert line.startswith("remem, digits, seed 0: ")
    assert "40.00 % on test" in line
    assert f"trials/{trial.key}/selected" in line


def test_a_report_can_be_written_at_any_time(
    config: ConfigDict, shared: Shared, tmp_path: pathlib.Path
) -> None:
    means = []
    config.seeds = (0,)

    for trial in (None, *space.trials(config)):
        if trial:
            shared.given[trial.key] = _record(trial, 0.75, 0.5, on_test=(0.5, 0.75))
        result = _make(config, shared)
        (tmp_path / "study.json").write_text(json.dumps(result, allow_nan=False))
        assert json.loads((tmp_path / "study.json").read_text()) == result
        report.write_study(tmp_path)
        means.append(_student_means(tmp_path))

    assert means[0] == {}
    assert means[-1] == {
        (choice, row): mean
        for choice, mean in (("validation", "50.0000"), ("test", "75.0000"))
        for row in ("scratch", "remem")
    }


def _student_means(folder: pathlib.Path) -> dict[tuple[str, str], str]:
    rows = csv.DictReader((folder / "table.csv").read_text().splitlines())
    return {(row["choice"], row["row"]): row["student_mean"] for row in rows if row["student_mean"]}


def test_the_grid_of_each_row_is_read_from_its_trials(config: ConfigDict) -> None:
    config.rows.remem.changes = ConfigDict({"student": {"losses": ("dist",), "weights": (1.0,)}})
    config.only = ""

    result = {entry["row"]: entry["grid"] for entry in _make(config, Shared())["search"]["rows"]}

    student = config.base.student
    rates, temperatures = list(student.learning_rates), list(student.temperatures)
    assert result["remem"]["teacher"] == {"rho": [0.05, 0.5, 1.0]}
    assert result["remem"]["students"] == [
        {
            "loss": "dist",
            "learning_rate": rates,
            "temperature": temperatures,
            "weight": [1.0],
            "seed": [0],
        }
    ]
    assert [entry["loss"] for entry in result["finetune"]["students"]] == list(student.losses)
    assert result["finetune"]["teacher"] == {}
    assert result["finetune"]["fixed"]["rho"] == 0
    (scratch,) = result["scratch"]["students"]
    assert (scratch["loss"], scratch["temperature"], scratch["weight"]) == (None, [], [])
    assert scratch["learning_rate"] == rates


def test_a_column_that_changes_students_has_its_own_grid(config: ConfigDict) -> None:
    config.columns.short = ConfigDict(study.column("Short", student={"temperatures": (9.0,)}))
    config.columns.twin = ConfigDict(study.column("Twin", student={"mixup": 0.1}))
    config.column_order = ("digits", "short", "twin")
    config.only = "remem"

    result = _make(config, Shared())["search"]["rows"]

    assert [entry["columns"] for entry in result] == [["digits", "twin"], ["short"]]
    assert result[1]["grid"]["students"][0]["temperature"] == [9.0]


def test_axes_of_every_group_are_listed_by_row(config: ConfigDict, shared: Shared) -> None:
    config.grid = ConfigDict(
        {
            "rho": (0.5, 0.05),
            "data": {"augment": ("trivial", "none")},
            "student": {"temperatures": ((4.0,), (1.0, 2.0)), "weight_decay": (0.0, 0.1)},
        }
    )
    (trial, *_) = [t for t in space.trials(config) if t.row == "remem"]
    shared.given[trial.key] = _record(trial, 0.5, 0.5)

    result = _make(config, shared)

    scratch, remem = (entry["grid"] for entry in result["search"]["rows"])
    of_all = {"data.augment": ["trivial", "none"], "student.weight_decay": [0.0, 0.1]}
    assert (scratch["settings"], scratch["teacher"], scratch["others"]) == (4, {}, of_all)
    assert (remem["settings"], remem["teacher"]) == (16, {"rho": [0.05, 0.5]})
    assert remem["others"] == {**of_all, "student.temperatures": [(4.0,), (1.0, 2.0)]}
    (of_kd,) = remem["students"]
    assert sorted(of_kd["temperature"]) == [1.0, 2.0, 4.0]
    searched = [text for text in result["differs"] if text.startswith("The study searches ")]
    assert [text.split()[3] for text in searched] == ["data.augment", "student.weight_decay"]
    json.dumps(result)


@pytest.fixture
def halving(config: ConfigDict) -> ConfigDict:
    """Two rows with 9 and 3 settings, one of each tried with all steps."""
    config.grid = ConfigDict({"learning_rate": (0.01, 0.1, 0.2), "rho": (0.05, 0.5, 1.0)})
    config.only, config.seeds = "finetune,remem", (0,)
    config.search.kind, config.search.reduction, config.search.rungs = "halving", 3, 2
    config.search.budget = 0.42
    return config


def test_the_text_of_a_search_counts_the_settings_on_each_rung(
    halving: ConfigDict, shared: Shared
) -> None:
    text = _make(halving, shared)["search"]["text"]

    # 5 x 1/3 + 1 and 3 x 1/3 + 1 are 4.67; a sixth would be 5, which is still within 5.04.
    assert "ReMem: of 9 settings, 6 start with 1/3 of the steps, 1 is tried in full." in text
    assert "Fine-tuning: of 3 settings, 3 start with 1/3 of the steps, 1 is tried in full." in text
    assert "From scratch: its one setting is tried in full." in text
    assert "as much as 5 full trials of 12 (41.7 %); config.search.budget allows 42 %" in text
    assert "trained anew with schedules of that length" in text


def test_settings_never_tried_in_full_are_listed(halving: ConfigDict, shared: Shared) -> None:
    before = _make(halving, shared)["search"]
    trials = (
        search.Search(halving.search, space.trials(halving), space.grid_sizes(halving))
        .schedule({})
        .trials
    )
    for number, trial in enumerate(trials):
        shared.given[trial.key] = _record(trial, number / 10, 0.5)

    after = _make(halving, shared)["search"]

    # Before any result: only three settings of ReMem, left out by the budget.
    assert [(row["row"], row["fraction"]) for row in before["dropped"]] == [("remem", None)] * 3
    counts = {(entry["row"], entry["fraction"] is None) for entry in after["dropped"]}
    assert counts == {("finetune", False), ("remem", False), ("remem", True)}
    assert len(after["dropped"]) == 3 - 1 + 9 - 1
    for entry in after["dropped"]:
        if entry["fraction"] is not None:
            assert (
                shared.given[entry["trial"]]["methods"][0]["student"]["validation"]["top1"]
                == (entry["validation"])
            )
    assert [
        (entry["row"], entry["settings"], [rung["reached"] for rung in entry["rungs"]])
        for entry in after["rungs"]
    ] == [("finetune", 3, [3, 1]), ("remem", 9, [6, 1])]


def test_claims_have_the_order_of_their_rows(config: ConfigDict, shared: Shared) -> None:
    for name, row, baseline in (
        ("a", "remem", "finetune"),
        ("b", "remem", "scratch"),
        ("c", "finetune", "scratch"),
    ):
        config.claims[name] = ConfigDict({"title": name, "row": row, "baseline": baseline})

    claims = _make(config, shared)["claims"]

    assert [claim["name"] for claim in claims] == ["c", "b", "a"]
    assert claims[0] == {"name": "c", "title": "c", "row": "finetune", "baseline": "scratch"}


def test_a_seed_that_is_not_searched_waits_for_the_best_setting(
    config: ConfigDict, shared: Shared
) -> None:
    config.search.seeds = (1,)
    searched = _trials(config, seed=1)
    for trial, accuracy in zip(searched, (0.4, 0.6), strict=False):
        shared.given[trial.key] = _record(trial, accuracy, 0.5)

    before = _make(config, shared)
    shared.given[searched[2].key] = _record(searched[2], 0.5, 0.5)
    after = _make(config, shared)

    waiting = {"row": "remem", "column": "digits", "seed": 0, "why": "waits for the search"}
    assert waiting in before["missing"]
    assert {**waiting, "why": "not run yet"} in after["missing"]
    (trial,) = [t for t in after["trials"] if (t["row"], t["seed"]) == ("remem", 0)]
    assert trial["settings"] == dict(searched[1].point)
    assert after["search"]["seeds"] == [1]
    assert after["search"]["text"].endswith(
        "Only seed 1 is searched; the others repeat the setting of each row and column that is "
        "best there on validation."
    )


def test_a_grid_drops_nothing(config: ConfigDict, shared: Shared) -> None:
    result = _make(config, shared)["search"]

    assert result["dropped"] == []
    assert {rung["planned"] for entry in result["rungs"] for rung in entry["rungs"]} == {1, 3}


def _add_done(config: ConfigDict, shared: Shared, row: str, right: list[bool]) -> None:
    """Adds a finished trial to a row; its student is right about the given test images."""
    (trial, *_) = _trials(config, row)
    record = _record(trial, 0.5, sum(right) / len(right))
    record["data"] |= {"fingerprint": "one", "test_labels": paired.pack(np.arange(len(right)) % 2)}
    record["methods"][0]["test_correct"] = {"students": [paired.pack(np.array(right))]}
    shared.given[trial.key] = record


def test_rows_are_compared_on_the_same_images(config: ConfigDict, shared: Shared) -> None:
    config.only, config.seeds = "finetune,remem", (0,)
    # Of 40 images, only ReMem is right on 9, only the baseline on 1.
    _add_done(config, shared, "finetune", [True] * 21 + [False] * 19)
    _add_done(config, shared, "remem", [False] + [True] * 29 + [False] * 10)

    (comparison,) = _make(config, shared)["compared"]

    (seed,) = comparison["seeds"]
    names = comparison["baseline"], comparison["row"], comparison["column"]
    assert names == ("finetune", "remem", "digits")
    assert seed["difference"] == pytest.approx(8 / 40)
    assert seed["standard_error"] == pytest.approx(np.sqrt(10 - 8**2 / 40) / 40)
    assert seed["p_value"] == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert seed["images"] == 40


def test_rows_on_other_images_are_not_compared(config: ConfigDict, shared: Shared) -> None:
    config.only, config.seeds = "finetune,remem", (0,)
    for row in ("finetune", "remem"):
        _add_done(config, shared, row, [True, False])
    shared.given[_trials(config)[0].key]["data"]["fingerprint"] = "another"

    (comparison,) = _make(config, shared)["compared"]

    assert comparison["seeds"] == [{"seed": 0, "why": "other test images"}]


def test_trials_of_an_older_version_have_no_difference(config: ConfigDict, shared: Shared) -> None:
    config.only, config.seeds = "finetune,remem", (0,)
    for row in ("finetune", "remem"):
        shared.given[_trials(config, row)[0].key] = _record(_trials(config, row)[0], 0.5, 0.5)

    (comparison,) = _make(config, shared)["compared"]

    assert comparison["seeds"] == [{"seed": 0, "why": "not on record"}]


def _with_refit(record: dict[str, Any], student: float, teacher: float) -> dict[str, Any]:
    record["methods"][0]["refit"] = {
        "images": 1437,
        "student": {"test": _metrics(student)},
        "teacher": {"test": _metrics(teacher)},
        "seeds": [{"seed": 0, "test": _metrics(student)}],
        "test_correct": None,
    }
    return record


def test_a_refit_is_that_of_the_trial_that_is_best_on_validation(
    config: ConfigDict, shared: Shared, tmp_path: pathlib.Path
) -> None:
    config.base.data.refit = True
    refitted = ((0.5, 0.4, 0.95), (0.7, 0.6, 0.8), (0.6, 0.7, 0.9))
    for trial, (validation, test, again) in zip(_trials(config), refitted, strict=True):
        shared.given[trial.key] = _with_refit(_record(trial, validation, test), again, 0.85)
    result = _make(config, shared)

    (selected,) = _replicates(result, "remem")
    (again,) = _replicates(result, "remem", "refit")

    assert selected["trial"] == again["trial"] == _trials(config)[1].key
    assert (selected["student"], again["student"], again["teacher"]) == (0.6, 0.8, 0.85)
    assert again["validation"] == 0.7
    (tmp_path / "study.json").write_text(json.dumps(result))
    report.write_study(tmp_path)
    text = (tmp_path / "study.md").read_text()
    _, _, section = text.partition("## Trained anew on train and validation")
    assert "80.00" in section.partition("\n## ")[0]
    assert "selected on the test split" not in text
    rows = [*csv.DictReader((tmp_path / "table.csv").read_text().splitlines())]
    means = {row["choice"]: row["student_mean"] for row in rows if row["row"] == "remem"}
    assert means == {"validation": "60.0000", "refit": "80.0000"}


def test_a_trial_whose_refit_diverged_has_no_cell_of_it(config: ConfigDict, shared: Shared) -> None:
    trial = _trials(config)[0]
    record = _record(trial, 0.7, 0.4)
    record["methods"][0]["refit"] = {"images": 1437, "reason": "the loss is nan"}
    shared.given[trial.key] = record

    assert not _replicates(_make(config, shared), "remem", "refit")


def test_without_validation_images_the_test_split_selects_trials(
    config: ConfigDict, shared: Shared, tmp_path: pathlib.Path
) -> None:
    config.base.data.validation, config.base.choose_on_test = 0.0, True
    for trial, test in zip(_trials(config), (0.5, 0.7, 0.6), strict=True):
        record = _record(trial, 0.0, test)
        record["methods"][0]["student"]["validation"] = None
        record["teachers"] = []
        del record["data"]["examples"]["validation"]
        shared.given[trial.key] = record
    searched = search.Search(config.search, space.trials(config), space.grid_sizes(config))

    result = summary.make(config, searched, space.trials(config), shared, TOTAL)

    assert result["selection"] == "test"
    assert not _replicates(result, "remem")
    (selected,) = _replicates(result, "remem", "test")
    assert (selected["trial"], selected["student"]) == (_trials(config)[1].key, 0.7)
    assert [trial["validation"] for trial in result["trials"] if trial["state"] == "done"] == [
        *(0.5, 0.7, 0.6)
    ]
    assert summary.best(result)[0].startswith("remem, digits, seed 0")
    (tmp_path / "study.json").write_text(json.dumps(result))
    report.write_study(tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "## Results, selected on the test split: optimistic" in text
    assert "selected on the test split itself (config.base.data.validation is 0)" in text
    assert text.count("70.00") >= 2
    assert "Best on test" in text


def test_trials_must_be_selected_on_one_split(config: ConfigDict) -> None:
    config.base.choose_on_test = True
    config.columns.digits.changes = ConfigDict({"data": {"validation": 0.0}})

    with pytest.raises(SettingError, match=r"some are selected on validation and others on test"):
        space.check(config)
