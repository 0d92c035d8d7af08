"""What a study has found, from records of its trials that are made by hand."""

import csv
import json
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import quickstart, study
from remem_jax import report
from remem_jax.settings import deciding
from remem_jax.study import cost, queue, space, summary
from remem_jax.study.space import Trial

TOTAL = cost.Total(5, 500, 1000, 10, 1e9, 0.5)


class Shared(queue.Queue):
    """What workers are supposed to have found, without a storage."""

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
    """A study of three radii and two seeds, with students from scratch for comparison."""
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
    """What a run leaves in results.json, as far as a study reads it, and where it ran."""
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
    return summary.make(config, space.trials(config), shared, TOTAL)


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


def test_of_equals_the_one_with_the_lower_loss_is_the_best(
    config: ConfigDict, shared: Shared
) -> None:
    for trial, loss in zip(_of(config), (1.0, 0.5, 0.75), strict=True):
        shared.given[trial.key] = _record(trial, 0.5, 0.5, loss=loss)

    (found,) = _replicates(_make(config, shared), "remem")

    assert found["trial"] == _of(config)[1].key


def test_what_test_itself_chose_stands_beside(config: ConfigDict, shared: Shared) -> None:
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


def test_what_was_not_measured_on_test_is_not_chosen_by_it(
    config: ConfigDict, shared: Shared
) -> None:
    trial = _of(config)[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    found = _make(config, shared)

    assert {cell["choice"] for cell in found["cells"]} == {"validation"}


def test_each_seed_is_a_replicate_with_a_best_of_its_own(
    config: ConfigDict, shared: Shared
) -> None:
    for seed, shares in ((0, (0.5, 0.6, 0.4)), (1, (0.9, 0.7, 0.8))):
        for trial, share in zip(_of(config, seed=seed), shares, strict=True):
            shared.given[trial.key] = _record(trial, share, share)

    found = _replicates(_make(config, shared), "remem")

    expected = [(0, _of(config, seed=0)[1].key), (1, _of(config, seed=1)[0].key)]
    assert [(one["seed"], one["trial"]) for one in found] == expected
    assert [one["trials"] for one in found] == [3, 3]


def test_from_scratch_there_is_no_teacher(config: ConfigDict, shared: Shared) -> None:
    (trial,) = _of(config, "scratch")
    shared.given[trial.key] = _record(trial, 0.5, 0.6)

    (found,) = _replicates(_make(config, shared), "scratch")

    assert (found["teacher"], found["student"]) == (None, 0.6)


def test_a_cell_without_a_result_says_why(config: ConfigDict, shared: Shared) -> None:
    shared.running = {_of(config, "scratch", 0)[0].key}
    shared.failed = {trial.key: "the loss is nan" for trial in _of(config, "remem", 0)}
    some = _of(config, "remem", 1)[0]
    shared.failed[some.key] = "no memory"  # Others of its cell are still to come.

    found = _make(config, shared)["missing"]

    assert {(one["row"], one["seed"]): one["why"] for one in found} == {
        ("scratch", 0): "being run",
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


def test_a_teacher_whose_information_was_measured_stands_with_its_trial(
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


def test_the_time_of_all_trials_is_spent(config: ConfigDict, shared: Shared) -> None:
    for trial in _of(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)  # Of 4 seconds.

    found = _make(config, shared)["cost"]

    assert found["spent_hours"] == pytest.approx(12 / 3600)
    assert found["hours"] == 0.5


def test_a_short_trial_does_not_stand_in_a_cell(config: ConfigDict, shared: Shared) -> None:
    full, short = _of(config)[0], space.scaled(_of(config)[0], 0.25)
    shared.given = {full.key: _record(full, 0.5, 0.5), short.key: _record(short, 0.9, 0.9)}

    found = summary.make(config, [short, full], shared, TOTAL)

    (replicate,) = _replicates(found, "remem")
    assert replicate["trial"] == full.key
    assert [one["fraction"] for one in found["trials"]] == [0.25, 1.0]


def test_a_cell_with_short_trials_alone_is_begun(config: ConfigDict, shared: Shared) -> None:
    full, short = _of(config)[0], space.scaled(_of(config)[0], 0.25)
    shared.given = {short.key: _record(short, 0.9, 0.9)}

    found = summary.make(config, [short, full], shared, TOTAL)

    assert found["cells"] == []
    assert [one["why"] for one in found["missing"]] == ["begun"]


def test_what_differs_is_said_once(config: ConfigDict, shared: Shared) -> None:
    for trial in _of(config):
        shared.given[trial.key] = _record(trial, 0.7, 0.4)

    found = _make(config, shared)["differs"]

    assert found.count("By hand.") == 1
    assert sum("student.steps is 80" in sentence for sentence in found) == 1


def test_what_a_method_fixes_does_not_differ_from_the_paper(
    config: ConfigDict, shared: Shared
) -> None:
    config.only = "finetune"
    trial = _of(config, "finetune")[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4)

    found = _make(config, shared)["differs"]

    assert not [sentence for sentence in found if "teacher.rho" in sentence]
    assert not [sentence for sentence in found if "mlp_weight" in sentence]


def test_the_best_of_each_cell_is_told_in_a_sentence(config: ConfigDict, shared: Shared) -> None:
    trial = _of(config)[0]
    shared.given[trial.key] = _record(trial, 0.7, 0.4, on_test=(0.6, 0.5))

    (line,) = summary.best(_make(config, shared))

    assert line.startswith("remem, digits, seed 0: ")
    assert "40.00 % on test" in line
    assert f"trials/{trial.key}/selected" in line


def test_a_report_can_be_drawn_of_what_is_known_at_any_time(
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
