"""The expected end of a study follows from the times of its finished trials."""

from typing import Any, cast

import pytest

from remem_jax.report.study import progress as progress_page
from remem_jax.study import progress
from remem_jax.study.space import Trial

NOW = 1e9  # 9 September 2001, 01:46:40 UTC.


def _planned(*rows: str, fraction: float = 1.0) -> list[Trial]:
    nothing = cast(Any, None)
    return [
        Trial(f"{row}{seed}", row, "digits", seed, {}, fraction, nothing, nothing)
        for seed in (0, 1)
        for row in rows
    ]


def _trial(planned: Trial, state: str, seconds: float | None = None) -> dict[str, Any]:
    return {
        **{"trial": planned.key, "number": 3, "row": planned.row, "column": planned.column},
        **{"seed": planned.seed, "fraction": planned.fraction},
        **{"state": state, "seconds": seconds},
    }


def _worker(since: float | None, *, died: bool = False) -> dict[str, Any]:
    return {"host": "here", "pid": 7, "since": since, "died": died}


def _record(trials: list[dict[str, Any]], planned: list[Trial], **running: Any) -> dict[str, Any]:
    record = progress.record(planned, trials, running, now=NOW, idle=1)
    assert record is not None
    return record


def test_the_time_of_a_row_is_that_of_its_finished_trials() -> None:
    planned = _planned("a", "b")  # a0, b0, a1, b1
    trials = [
        _trial(planned[0], "done", 100.0),
        _trial(planned[1], "done", 400.0),
        *(_trial(trial, "waiting") for trial in planned[2:]),
    ]

    record = _record(trials, planned)

    assert (record["left"], record["workers"]) == (2, 1)
    assert record["until"] == NOW + 100 + 400


def test_rows_without_a_finished_trial_take_the_mean_time() -> None:
    planned = _planned("a", "b", "c")
    trials = [_trial(planned[0], "done", 100.0), _trial(planned[1], "done", 400.0)]

    record = _record(trials, planned)

    assert record["until"] == pytest.approx(NOW + 250 + (100 + 400 + 250))


def test_running_trials_take_only_their_rest_and_workers_share_the_work() -> None:
    planned = _planned("a")
    trials = [_trial(planned[0], "done", 100.0), _trial(planned[1], "running")]

    record = _record(trials, planned, a1=_worker(NOW - 40))

    assert record["workers"] == 2
    assert record["until"] == NOW + 60 / 2


def test_a_trial_that_takes_longer_than_expected_is_about_to_end() -> None:
    planned = _planned("a")
    trials = [_trial(planned[0], "done", 100.0), _trial(planned[1], "running")]

    assert _record(trials, planned, a1=_worker(NOW - 1000))["until"] == NOW


def test_short_trials_take_their_fraction_of_the_time() -> None:
    full, short = _planned("a")[:1], _planned("b", fraction=0.25)[:1]

    record = _record([_trial(full[0], "done", 100.0)], full + short)

    assert record["until"] == NOW + 25


def test_a_dead_worker_does_not_count() -> None:
    planned = _planned("a")
    trials = [_trial(planned[0], "done", 100.0), _trial(planned[1], "running")]
    running = {"a1": _worker(NOW, died=True)}

    record = progress.record(planned, trials, running, now=NOW, idle=0)

    assert record is not None
    assert (record["workers"], record["until"]) == (0, None)


def test_nothing_is_known_before_the_first_trial_is_done() -> None:
    assert _record([], _planned("a"))["until"] is None


def test_a_study_whose_trials_have_ended_has_no_progress() -> None:
    planned = _planned("a")
    trials = [_trial(planned[0], "done", 100.0), _trial(planned[1], "failed")]

    assert progress.record(planned, trials, {}, now=NOW, idle=1) is None


def test_the_page_says_who_runs_what_and_until_when() -> None:
    planned = _planned("a", "b")
    trials = [_trial(planned[0], "done", 3600.0), _trial(planned[1], "running")]
    study = {
        "progress": _record(trials, planned, b0=_worker(NOW - 600)),
        "trials": trials,
        "rows": [{"name": name, "title": name.upper(), "group": ""} for name in "ab"],
        "columns": [{"name": "digits", "title": "Digits"}],
        "cost": {"trials": 4},
    }

    page = progress_page.of(study)

    assert page is not None
    # Three trials of an hour, less ten minutes, shared by two workers.
    assert page.summary == (
        "At 2001-09-09 01:46 UTC, 3 of 4 trials are left, of which 1 runs now. With 2 workers, and "
        "trials that take as long as those that are done, the study ends at about 2001-09-09 "
        "03:11 UTC."
    )
    assert page.running is not None
    assert page.running.rows == (
        ("3: b0", "B", "Digits", "0", "here", "7", "2001-09-09 01:36 UTC"),
    )
