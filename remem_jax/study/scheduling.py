"""The trials that a study has scheduled, given the results of all workers."""

import math
from typing import Any

from remem_jax.study import axes
from remem_jax.study.configurations import Configuration
from remem_jax.study.queue import Queue
from remem_jax.study.search import Schedule, Search
from remem_jax.study.space import Trial


def schedule(search: Search, queue: Queue) -> Schedule:
    """Returns the trials scheduled so far."""
    values: dict[str, float] = {}
    while True:  # A complete rung schedules the next one.
        scheduled = search.schedule(values)
        keys = [trial.key for trial in scheduled.trials]
        current = queue.values(keys) | dict.fromkeys(queue.failures(keys), -math.inf)
        if current.keys() <= values.keys():
            return scheduled
        values |= current


def unfinished(search: Search, queue: Queue) -> list[Trial]:
    """Returns the scheduled trials that are neither done nor failed."""
    trials = schedule(search, queue).trials
    states = queue.states([trial.key for trial in trials])
    return [trial for trial in trials if states.get(trial.key) not in ("done", "failed")]


def configuration(trial: Trial) -> Configuration:
    """Returns a trial as the queue stores it."""
    numbers = {name: value for name, value in trial.point.items() if _is_number(value)}
    attributes = {
        **{name: value for name, value in trial.point.items() if name not in numbers},
        "row": trial.row,
        "column": trial.column,
        "seed": trial.seed,
        "fraction": trial.fraction,
    }
    return Configuration(trial.key, numbers, attributes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def name(trial: Trial) -> str:
    """Returns the row, column, seed and grid point of a trial, in words."""
    short = [] if trial.fraction == 1 else [f"{trial.fraction:.3g} of the steps"]
    return ", ".join(
        [trial.row, trial.column, f"seed {trial.seed}", *axes.described(trial.point), *short]
    )
