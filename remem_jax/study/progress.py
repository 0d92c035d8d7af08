"""Who runs which trial of a study, what is left, and when it is expected to end."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.study.space import Trial

_ENDED = ("done", "failed")


def record(
    planned: Sequence[Trial],
    trials: Sequence[Mapping[str, Any]],
    running: Mapping[str, Mapping[str, Any]],
    *,
    now: float,
    idle: int,
) -> dict[str, Any] | None:
    """Returns the progress of a study, as JSON values; None if nothing is left to run.

    The expected end is that of trials which take as long as those that are done (of the same row
    and fraction of the steps, or else of any, in proportion to their steps), shared by all workers
    that run now.

    Args:
        planned: As many trials of each kind as will be run, from `Search.planned`.
        trials: Records of the trials scheduled so far, from `trial_records.make`.
        running: Workers of running trials, from `Queue.running_workers`.
        now: Seconds since 1970.
        idle: Number of workers that run no trial now, and will run the next ones.

    Returns:
        "at" (`now`); "running", for each running trial its "trial" (key), "host", "pid", "since"
        and "died"; "left", the number of trials that have not ended, with those that run;
        "workers", the number of workers; and "until" (seconds since 1970), None if no trial is
        done or no worker runs.
    """
    ended = Counter(_kind(trial) for trial in trials if trial["state"] in _ENDED)
    kinds = Counter((t.row, t.column, t.seed, t.fraction) for t in planned)
    left = kinds - ended
    if not left:
        return None
    workers = idle + sum(not worker["died"] for worker in running.values())
    seconds = _estimates(trials)
    until = None
    if workers and seconds is not None:
        total = sum(
            count * _estimate(seconds, row, part) for (row, _, _, part), count in left.items()
        )
        by_key = {trial["trial"]: trial for trial in trials}
        for key, worker in running.items():
            expected = _estimate(seconds, by_key[key]["row"], by_key[key]["fraction"])
            total -= min(expected, max(0.0, now - (worker["since"] or now)))
        until = now + total / workers
    return {
        "at": now,
        "running": [{"trial": key, **worker} for key, worker in running.items()],
        "left": left.total(),
        "workers": workers,
        "until": until,
    }


def _kind(trial: Mapping[str, Any]) -> tuple[str, str, int, float]:
    return trial["row"], trial["column"], trial["seed"], trial["fraction"]


def _estimates(trials: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], float] | None:
    """Returns the mean seconds of finished trials by row and fraction of the steps.

    The entry ("", 1.0) is for other rows and fractions. None if no trial is done.
    """
    done: dict[tuple[str, float], list[float]] = {}
    for trial in trials:
        if trial["seconds"] is not None:
            done.setdefault((trial["row"], trial["fraction"]), []).append(trial["seconds"])
    if not done:
        return None
    full = [value / part for (_, part), values in done.items() for value in values]
    means = {kind: statistics.fmean(values) for kind, values in done.items()}
    return {("", 1.0): statistics.fmean(full), **means}


def _estimate(seconds: Mapping[tuple[str, float], float], row: str, fraction: float) -> float:
    return seconds.get((row, fraction), fraction * seconds["", 1.0])
