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


def ended(search: Search, queue: Queue) -> tuple[list[Trial], list[Trial]]:
    """Returns the trials that are done or failed, and all others that are or may be scheduled."""
    now = schedule(search, queue)
    states = queue.states([trial.key for trial in now.trials])
    over = [states.get(trial.key) in ("done", "failed") for trial in now.trials]
    done = [trial for trial, is_over in zip(now.trials, over, strict=True) if is_over]
    left = [trial for trial, is_over in zip(now.trials, over, strict=True) if not is_over]
    return done, [*left, *now.repeats]


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
