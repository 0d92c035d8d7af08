"""The trials that a study has scheduled, given the results of all workers."""

import math
from typing import Any

from ml_collections import ConfigDict

from remem_jax.study import axes, space
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


class LeftOut:
    """The trials of a study that `config.only` leaves out, of which some may be finished."""

    def __init__(self, config: ConfigDict) -> None:
        """Lists the trials; `config` has all settings of the study."""
        self._by_place: dict[str, list[Trial]] = {}
        if config.only:
            selected = {trial.cell for trial in space.trials(config)}
            whole = config.copy_and_resolve_references()
            whole.only = ""
            for trial in space.trials(whole):
                if trial.cell not in selected:
                    self._by_place.setdefault(trial.key, []).append(trial)

    def finished(self, queue: Queue) -> list[Trial]:
        """Returns those that are done, with their keys in the queue.

        Their images and weights are not read, so they are recognised by their settings and paths.
        Several with the same ones have other images or weights; none of them is returned.
        """
        keys: dict[str, list[str]] = {}
        for key, record in queue.records().items() if self._by_place else ():
            places = space.places_of_record(record)
            place = next((place for place in places if place in self._by_place), None)
            if place is not None:
                keys.setdefault(place, []).append(key)
        return [
            trial._replace(key=of_place[0])
            for place, of_place in keys.items()
            if len(of_place) == 1
            for trial in self._by_place[place]
        ]


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
