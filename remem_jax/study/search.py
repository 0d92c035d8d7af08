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


class Cell(NamedTuple):
    """The search of one cell.

    Attributes:
        trials: Its whole grid, in full, in the order in which a search takes them up.
        rungs: The rungs; all trials of a grid are on one.
    """

    trials: list[Trial]
    rungs: list[Rung]


class Search:
    """The search of a study.

    Attributes:
        cells: What is searched, by row, column and seed.
        by_key: All trials that it may come to want.
        planned: Of each rung as many as will be tried; which they are, is known for the first.
    """

    def __init__(
        self,
        settings: ConfigDict,
        trials: Sequence[Trial],
        grids: Mapping[str, int] | None = None,
    ) -> None:
        """Lays out the rungs.

        Args:
            settings: `config.search`.
            trials: All trials in full, from `space.trials`.
            grids: How many settings each row of the table has, from `space.grid_sizes`: rows that
                are compared, whether or not they are run now. None: those of the trials.

        Raises:
            SettingError: If the budget is too little.
        """
        own: dict[tuple[str, str, int], list[Trial]] = {}
        for trial in trials:
            own.setdefault(trial.cell, []).append(trial)
        if grids is None:
            grids = {row: max(len(own[c]) for c in own if c[0] == row) for row, _, _ in own}
        if settings.kind == "grid":
            sizes = {row: {1.0: size} for row, size in grids.items()}
        else:
            sizes = space.halving_sizes(grids, settings)
        self.cells = {cell: Cell(own[cell], _rungs(own[cell], sizes[cell[0]])) for cell in own}
        rungs = [rung for cell in self.cells.values() for rung in cell.rungs]
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
        found = [_climb(cell.rungs, values) for cell in self.cells.values()]
        return Wanted(
            [trial for cell in found for trial in cell.trials], any(cell.more for cell in found)
        )


def _rungs(trials: Sequence[Trial], sizes: Mapping[float, int]) -> list[Rung]:
    candidates = trials[: max(sizes.values())]
    return [
        Rung([space.scaled(one, fraction) if fraction < 1 else one for one in candidates], size)
        for fraction, size in sizes.items()
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
