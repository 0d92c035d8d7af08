"""Which trials a study wants, given the results that it has: all of a grid, or rung by rung."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from remem_jax.study import space
from remem_jax.study.space import Trial


class Wanted(NamedTuple):
    """What a study wants now.

    Attributes:
        trials: All that it has wanted so far.
        more: Whether results that are still to come will make it want others.
    """

    trials: list[Trial]
    more: bool


class Rung(NamedTuple):
    """A rung of successive halving.

    Attributes:
        trials: All that may come to be tried on it, with its number of steps.
        size: How many of them will be.
    """

    trials: list[Trial]
    size: int


class Search:
    """The search of a study.

    Attributes:
        by_key: All trials that it may come to want.
        planned: Of each rung as many as will be tried; which they are, is known for the first.
    """

    def __init__(self, settings: ConfigDict, trials: Sequence[Trial]) -> None:
        """Lays out the rungs.

        Args:
            settings: `config.search`.
            trials: All trials in full, from `space.trials`.

        Raises:
            SettingError: If the budget is too little.
        """
        cells: dict[tuple[str, str, int], list[Trial]] = {}
        for trial in trials:
            cells.setdefault(trial.cell, []).append(trial)
        self._cells = [_rungs(settings, own) for own in cells.values()]
        rungs = [rung for cell in self._cells for rung in cell]
        self.by_key = {trial.key: trial for rung in rungs for trial in rung.trials}
        self.planned = [trial for rung in rungs for trial in rung.trials[: rung.size]]

    def wanted(self, values: Mapping[str, float]) -> Wanted:
        """The trials to run, and whether others may follow.

        They depend on the results alone, not on who found them or when: any number of workers,
        however often they are killed, come to the same trials.

        Args:
            values: What counts, by key, of trials that are done; -inf of those that failed for
                good.
        """
        found = [_climb(cell, values) for cell in self._cells]
        return Wanted(
            [trial for cell in found for trial in cell.trials], any(cell.more for cell in found)
        )


def _rungs(settings: ConfigDict, trials: Sequence[Trial]) -> list[Rung]:
    if settings.kind == "grid" or len(trials) == 1:
        return [Rung(list(trials), len(trials))]
    sizes, fractions = space.halving_sizes(len(trials), settings), space.rung_fractions(settings)
    candidates = trials[: sizes[0]]
    return [
        Rung([space.scaled(one, fraction) if fraction < 1 else one for one in candidates], size)
        for fraction, size in zip(fractions, sizes, strict=True)
    ]


def _climb(rungs: Sequence[Rung], values: Mapping[str, float]) -> Wanted:
    """Successive halving of one cell.

    Source: Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943, algorithm 1; each rung
    trains from the start, since the schedules have other lengths.
    """
    found: list[Trial] = []
    order = list(range(len(rungs[0].trials)))
    for number, rung in enumerate(rungs):
        own = [rung.trials[i] for i in order[: rung.size]]
        found.extend(own)
        if any(trial.key not in values for trial in own):
            return Wanted(found, more=number + 1 < len(rungs))
        # Equals stay in their order, nearest to the paper's region first.
        order = sorted(order[: rung.size], key=lambda i: -values[rung.trials[i].key])
    return Wanted(found, more=False)
