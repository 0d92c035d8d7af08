"""The summary of a study, from hand-made records of its trials."""

import csv
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from configs import quickstart, study
from remem_jax import paired, report
from remem_jax.settings import deciding
from remem_jax.study import cost, queue, search, space, summary
from remem_jax.study.space import Trial

TOTAL = cost.Total(5, 500, 1000, 10, 1e9, 0.5)


class Shared(queue.Queue):
    """A queue with given results, without a storage."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}

    def states(self, keys: Any) -> dict[str, str]:
        found = dict.fromkeys(keys, "waiting") | dict.fromkeys(self.running, "running")
        return found | dict.fromkeys(self.given, "done") | dict.fromkeys(self.failed, "failed")

    def records(self, keys: Any) -> dict[str, Any]:
        return {key: record for key, record in self.given.items() if key in keys}

    def failures(self, keys: Any) -> dict[str, str]:
        return {key: reason for key, reason in self.failed.items() if key in keys}


@pytest.fixture
def config() -> ConfigDict:
    """A study of three values of rho and two seeds, with a from-scratch baseline."""
    rows = study.rows("scratch", "finetune", "remem")
    found = study.make(
        "Digits", rows, {"digits": study.column("Digits")}, base=quickstart.get_config()
    )
    found.only = "scratch,remem"
    found.grid = ConfigDict({"rho": (0.05, 0.5, 1.0)})
    found.search.near = ConfigDict()
    found.seeds = (0, 1)
    return found


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
    taught = trial.row != "scratch"
    student = {"validation": _metrics(validation, loss), "test": _metrics(test)}
    selected = {
        "teacher_step": 120 if taught else None,
        "student": 1,
        "loss": "kd" if taught else None,
        "learning_rate": 0.1,
        "temperature": 4.0,
        "weight": 0.5,
        "seed": 0,
    }
    row = {
        "method": trial.config.methods[0],
        "selected": selected,
        "student": student,
        "seeds": [{"seed": 0, "test": _metrics(test)}],
        "teacher": {"validation": _metrics(0.5), "test": _metrics(0.75)} if taught else None,
        "on_test": None,
    }
    if on_test:
        row["on_test"] = {
            "selected": selected | {"teacher_step": 40},
            "student": {"validation": _metrics(on_test[0]), "test": _metrics(on_test[1])},
            "seeds": [{"seed": 0, "test": _metrics(on_test[1])}],
            "teacher": {"test": _metrics(0.625)} if taught else None,
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
        if taught
        else [],
        "students": [{"student": 0}, {"student": 1}],
        "seconds": {"teachers/remem": 1.5, "students/remem": 2.5},
        "device": {"platform": "cpu", "kind": "cpu", "count": 2},
        "versions": {"remem_jax": "0.1.0"},
        "worker": "here",
        "folder": f"/study/trials/{trial.key}",
    }


def _of(config: ConfigDict, row: str = "remem", seed: int = 0) -> list[Trial]:
    return [t for t in space.trials(config) if (t.row, t.seed) == (row, seed)]


def _make(config: ConfigDict, shared: Shared) -> dict[str, Any]:
    found = search.Search(config.search, space.trials(config), space.grid_sizes(config))
    values = {
        key: one["methods"][0]["student"]["validation"]["top1"] for key, one in shared.given.items()
    }
    return summary.make(config, found, found.schedule(values).trials, shared, TOTAL)


def _replicates(found: dict[str, Any], row: str, choice: str = "validation") -> list[Any]:
    return [
        replicate
        for cell in found["cells"]
        if (cell["row"], cell["choice"]) == (row, choice)
        for replicate in cell["replicates"]
    ]


def test_a_cell_shows_the_test_result_of_the_best_on_validation(
    config: ConfigDict, shared: Shared
) -> None:
    for trial, shares in zip(_of(config), ((0.5, 0.9), (0.7, 0.4), (0.6, 0.8)), strict=True):
        shared.given[trial.key] = _record(trial, *shares)

    (found,) = _replicates(_make(config, shared), "remem")

    best = _of(config)[1]
    assert (found["trial"], found["validation"], found["student"]) == (best.key, 0.7, 0.4)
    assert (found["teacher"], found["students_of_seeds"]) == (0.75, [0.4])
    assert (found["trials"], found["students"]) == (3, 6)


def test_the_settings_of_a_cell_are_those_of_its_teacher_and_its_student(
    config: ConfigDict, shared: Shared
) -> None:
    trial = _of(config)[1]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    (found,) = _replicates(_make(config, shared), "remem")

    assert found["settings"] == {
        "rho": 0.5,
        "teacher_step": 120,
        "student.loss": "kd",
        "student.learning_rate": 0.1,
        "student.temperature": 4.0,
        "student.weight": 0.5,
    }


def test_ties_go_to_the_lower_loss(config: ConfigDict, shared: Shared) -> None:
    for trial, loss in zip(_of(config), (1.0, 0.5, 0.75), strict=True):
        shared.given[trial.key] = _record(trial, 0.5, 0.5, loss=loss)

    (found,) = _replicates(_make(config, shared), "remem")

    assert found["trial"] == _of(config)[1].key


def test_the_choice_on_test_is_reported_too(config: ConfigDict, shared: Shared) -> None:
    shares = ((0.7, 0.4, (0.6, 0.5)), (0.6, 0.5, (0.3, 0.8)), (0.5, 0.3, (0.2, 0.6)))
    for trial, (validation, test, on_test) in zip(_of(config), shares, strict=True):
        shared.given[trial.key] = _record(trial, validation, test, on_test=on_test)
    found = _make(config, shared)

    (by_validation,) = _replicates(found, "remem")
    (by_test,) = _replicates(found, "remem", "test")

    assert (by_validation["trial"], by_validation["student"]) == (_of(config)[0].key, 0.4)
    assert (by_test["trial"], by_test["student"]) == (_of(config)[1].key, 0.8)
    assert (by_test["validation"], by_test["teacher"]) == (0.3, 0.625)
    assert by_test["settings"]["teacher_step"] == 40


def test_trials_without_a_choice_on_test_have_no_cell_of_it(
    config: ConfigDict, shared: Shared
) -> None:
    trial = _of(config)[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    found = _make(config, shared)

    assert {cell["choice"] for cell in found["cells"]} == {"validation"}


def test_each_seed_is_a_replicate_with_its_own_best_trial(
    config: ConfigDict, shared: Shared
) -> None:
    for seed, shares in ((0, (0.5, 0.6, 0.4)), (1, (0.9, 0.7, 0.8))):
        for trial, share in zip(_of(config, seed=seed), shares, strict=True):
            shared.given[trial.key] = _record(trial, share, share)

    found = _replicates(_make(config, shared), "remem")

    expected = [(0, _of(config, seed=0)[1].key), (1, _of(config, seed=1)[0].key)]
    assert [(one["seed"], one["trial"]) for one in found] == expected
    assert [one["trials"] for one in found] == [3, 3]


def test_a_trial_from_scratch_has_no_teacher(config: ConfigDict, shared: Shared) -> None:
    (trial,) = _of(config, "scratch")
    shared.given[trial.key] = _record(trial, 0.5, 0.6)

    (found,) = _replicates(_make(config, shared), "scratch")

    assert (found["teacher"], found["student"]) == (None, 0.6)


def test_a_cell_without_a_result_has_a_reason(config: ConfigDict, shared: Shared) -> None:
    shared.running = {_of(config, "scratch", 0)[0].key}
    shared.failed = {trial.key: "the loss is nan" for trial in _of(config, "remem", 0)}
    some = _of(config, "remem", 1)[0]
    shared.failed[some.key] = "no memory"  # Other trials of the cell are still waiting.

    found = _make(config, shared)["missing"]

    assert {(one["row"], one["seed"]): one["why"] for one in found} == {
        ("scratch", 0): "running",
        ("scratch", 1): "not run yet",
        ("remem", 0): "failed: the loss is nan",
        ("remem", 1): "not run yet",
    }


def test_every_trial_is_listed_with_its_state(config: ConfigDict, shared: Shared) -> None:
    done, failed, waits = _of(config)
    shared.given[done.key] = _record(done, 0.7, 0.4)
    shared.failed[failed.key] = "the loss is nan"

    listed = {one["trial"]: one for one in _make(config, shared)["trials"]}

    assert listed.keys() == {trial.key for trial in space.trials(config)}
    states = [listed[trial.key]["state"] for trial in (done, failed, waits)]
    assert states == ["done", "failed", "waiting"]
    assert listed[failed.key]["reason"] == "the loss is nan"
    assert listed[failed.key]["validation"] is None
    assert listed[done.key] == {
        "trial": done.key,
        "row": "remem",
        "column": "digits",
        "seed": 0,
        "fraction": 1.0,
        "settings": {"rho": 0.05},
        "state": "done",
        "reason": "",
        "teachers": [],
        "validation": 0.7,
        "teacher_steps": 120,
        "student_steps": 80,
        "students": 2,
        "seconds": 4.0,
        "device": "2 x cpu",
        "worker": "here",
        "folder": f"/study/trials/{done.key}",
    }


def test_measured_information_of_teachers_is_listed_with_their_trial(
    config: ConfigDict, shared: Shared
) -> None:
    config.base.teacher.pruned_attention = 3
    done, other, _ = _of(config)
    record = _record(done, 0.7, 0.4)
    own = {"excess": 0.25, "deviation": 0.125, "slope": -0.5, "last": 2, "info_nce": None}
    record["teachers"][0]["information"] = own
    student = {"method": "remem", "teacher_step": 120, "diverged": False}
    record["students"] = [{**student, "validation": _metrics(share)} for share in (0.6, 0.7)]
    shared.given = {done.key: record, other.key: _record(other, 0.5, 0.5)}

    found = {one["trial"]: one["teachers"] for one in _make(config, shared)["trials"]}

    assert found.pop(done.key) == [
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
    assert not any(found.values())


def test_the_time_of_all_trials_is_added_up(config: ConfigDict, shared: Shared) -> None:
    for trial in _of(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)  # Of 4 seconds.

    found = _make(config, shared)["cost"]

    assert found["spent_hours"] == pytest.approx(12 / 3600)
    assert found["hours"] == 0.5


def test_a_cell_shows_only_trials_with_all_steps(config: ConfigDict, shared: Shared) -> None:
    full, short = _of(config)[0], space.scaled(_of(config)[0], 0.25)
    shared.given = {full.key: _record(full, 0.5, 0.5), short.key: _record(short, 0.9, 0.9)}

    found = summary.make(config, search.Search(config.search, [full]), [short, full], shared, TOTAL)

    (replicate,) = _replicates(found, "remem")
    assert replicate["trial"] == full.key
    assert [one["fraction"] for one in found["trials"]] == [0.25, 1.0]


def test_a_cell_with_only_short_trials_is_started(config: ConfigDict, shared: Shared) -> None:
    full, short = _of(config)[0], space.scaled(_of(config)[0], 0.25)
    shared.given = {short.key: _record(short, 0.9, 0.9)}

    found = summary.make(config, search.Search(config.search, [full]), [short, full], shared, TOTAL)

    assert found["cells"] == []
    assert [one["why"] for one in found["missing"]] == ["started"]


def test_each_deviation_is_listed_once(config: ConfigDict, shared: Shared) -> None:
    for trial in _of(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)

    found = _make(config, shared)["differs"]

    assert found.count("By hand.") == 1
    assert sum("student.steps is 80" in sentence for sentence in found) == 1


def test_settings_fixed_by_a_method_are_no_deviation(config: ConfigDict, shared: Shared) -> None:
    config.only = "finetune"
    trial = _of(config, "finetune")[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    found = _make(config, shared)["differs"]

    assert not [sentence for sentence in found if "teacher.rho" in sentence]
    assert not [sentence for sentence in found if "mlp_weight" in sentence]


def test_the_best_of_each_cell_has_a_sentence(config: ConfigDict, shared: Shared) -> None:
    trial = _of(config)[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4, on_test=(0.6, 0.5))

    (line,) = summary.best(_make(config, shared))

    assert line.startswith("remem, digits, seed 0: ")
    assert "40.00 % on test" in line
    assert f"trials/{trial.key}/selected" in line


def test_a_report_can_be_written_at_any_time(
    config: ConfigDict, shared: Shared, tmp_path: pathlib.Path
) -> None:
    shown = []

    for trial in (None, *space.trials(config)):
        if trial:
            shared.given[trial.key] = _record(trial, 0.75, 0.5, on_test=(0.5, 0.75))
        found = _make(config, shared)
        (tmp_path / "study.json").write_text(json.dumps(found, allow_nan=False))
        assert json.loads((tmp_path / "study.json").read_text()) == found
        report.write_study(tmp_path)
        shown.append(_student_means(tmp_path))

    assert shown[0] == {}
    assert shown[-1] == {
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

    found = {one["row"]: one["grid"] for one in _make(config, Shared())["search"]["rows"]}

    own = config.base.student
    rates, temperatures = list(own.learning_rates), list(own.temperatures)
    assert found["remem"]["teacher"] == {"rho": [0.05, 0.5, 1.0]}
    assert found["remem"]["students"] == [
        {
            "loss": "dist",
            "learning_rate": rates,
            "temperature": temperatures,
            "weight": [1.0],
            "seed": [0],
        }
    ]
    assert [one["loss"] for one in found["finetune"]["students"]] == list(own.losses)
    assert found["finetune"]["teacher"] == {}
    assert found["finetune"]["fixed"]["rho"] == 0
    (scratch,) = found["scratch"]["students"]
    assert (scratch["loss"], scratch["temperature"], scratch["weight"]) == (None, [], [])
    assert scratch["learning_rate"] == rates


def test_a_column_that_changes_students_has_its_own_grid(config: ConfigDict) -> None:
    config.columns.short = ConfigDict(study.column("Short", student={"temperatures": (9.0,)}))
    config.columns.twin = ConfigDict(study.column("Twin", student={"mixup": 0.1}))
    config.column_order = ("digits", "short", "twin")
    config.only = "remem"

    found = _make(config, Shared())["search"]["rows"]

    assert [one["columns"] for one in found] == [["digits", "twin"], ["short"]]
    assert found[1]["grid"]["students"][0]["temperature"] == [9.0]


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
    assert [(one["row"], one["fraction"]) for one in before["dropped"]] == [("remem", None)] * 3
    counts = {(one["row"], one["fraction"] is None) for one in after["dropped"]}
    assert counts == {("finetune", False), ("remem", False), ("remem", True)}
    assert len(after["dropped"]) == 3 - 1 + 9 - 1
    for one in after["dropped"]:
        if one["fraction"] is not None:
            assert (
                shared.given[one["trial"]]["methods"][0]["student"]["validation"]["top1"]
                == (one["validation"])
            )
    assert [
        (one["row"], one["settings"], [rung["reached"] for rung in one["rungs"]])
        for one in after["rungs"]
    ] == [("finetune", 3, [3, 1]), ("remem", 9, [6, 1])]


def test_a_grid_drops_nothing(config: ConfigDict, shared: Shared) -> None:
    found = _make(config, shared)["search"]

    assert found["dropped"] == []
    assert {rung["planned"] for one in found["rungs"] for rung in one["rungs"]} == {1, 3}


def _add_done(config: ConfigDict, shared: Shared, row: str, right: list[bool]) -> None:
    """Adds a finished trial to a row; its student is right about the given test images."""
    (trial, *_) = _of(config, row)
    found = _record(trial, 0.5, sum(right) / len(right))
    found["data"] |= {"fingerprint": "one", "test_labels": paired.pack(np.arange(len(right)) % 2)}
    found["methods"][0]["test_correct"] = {"students": [paired.pack(np.array(right))]}
    shared.given[trial.key] = found


def test_rows_are_compared_on_the_same_images(config: ConfigDict, shared: Shared) -> None:
    config.only, config.seeds = "finetune,remem", (0,)
    # Of 40 images, only ReMem is right on 9, only the baseline on 1.
    _add_done(config, shared, "finetune", [True] * 21 + [False] * 19)
    _add_done(config, shared, "remem", [False] + [True] * 29 + [False] * 10)

    (one,) = _make(config, shared)["compared"]

    (seed,) = one["seeds"]
    assert (one["baseline"], one["row"], one["column"]) == ("finetune", "remem", "digits")
    assert seed["difference"] == pytest.approx(8 / 40)
    assert seed["standard_error"] == pytest.approx(np.sqrt(10 - 8**2 / 40) / 40)
    assert seed["p_value"] == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert seed["images"] == 40


def test_rows_on_other_images_are_not_compared(config: ConfigDict, shared: Shared) -> None:
    config.only, config.seeds = "finetune,remem", (0,)
    for row in ("finetune", "remem"):
        _add_done(config, shared, row, [True, False])
    shared.given[_of(config)[0].key]["data"]["fingerprint"] = "another"

    (one,) = _make(config, shared)["compared"]

    assert one["seeds"] == [{"seed": 0, "why": "other test images"}]


def test_trials_of_an_older_version_have_no_difference(config: ConfigDict, shared: Shared) -> None:
    config.only, config.seeds = "finetune,remem", (0,)
    for row in ("finetune", "remem"):
        shared.given[_of(config, row)[0].key] = _record(_of(config, row)[0], 0.5, 0.5)

    (one,) = _make(config, shared)["compared"]

    assert one["seeds"] == [{"seed": 0, "why": "not on record"}]
