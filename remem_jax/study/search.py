"""The trials that a study schedules, given its results: a whole grid, or successive halving."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from remem_jax.study import space
from remem_jax.study.space import Trial


class Schedule(NamedTuple):
    """The trials that a study has scheduled so far.

    Attributes:
        trials: These trials.
        more: Whether further results will add trials.
    """

    trials: list[Trial]
    more: bool


class Rung(NamedTuple):
    """A rung of successive halving.

    Attributes:
        trials: All trials that may reach this rung, with its number of steps.
        size: Number of trials that will reach it.
    """

    trials: list[Trial]
    size: int


class Cell(NamedTuple):
    """The search of one cell of the table.

    Attributes:
        trials: The whole grid, with all steps, in the order in which a search tries it.
        rungs: The rungs; a grid search has one.
    """

    trials: list[Trial]
    rungs: list[Rung]


class Search:
    """The search of a study.

    Attributes:
        cells: The cells by row, column and seed.
        by_key: All trials that may be scheduled, by key.
        planned: As many trials of each rung as will be run. On later rungs, other trials may take
            their places.
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
            trials: All trials with all steps, from `space.trials`.
            grids: Number of grid points of each row of the table, also of rows that are not run
                now, from `space.grid_sizes`; None to count those of the trials.

        Raises:
            SettingError: If the budget is too small.
        """
        by_cell: dict[tuple[str, str, int], list[Trial]] = {}
        for trial in trials:
            by_cell.setdefault(trial.cell, []).append(trial)
        if grids is None:
            grids = {
                row: max(len(by_cell[cell]) for cell in by_cell if cell[0] == row)
                for row, _, _ in by_cell
            }
        if settings.kind == "grid":
            sizes = {row: {1.0: size} for row, size in grids.items()}
        else:
            sizes = space.halving_sizes(grids, settings)
        self.cells = {
            cell: Cell(grid, _rungs(grid, sizes[cell[0]])) for cell, grid in by_cell.items()
        }
        rungs = [rung for cell in self.cells.values() for rung in cell.rungs]
        self.by_key = {trial.key: trial for rung in rungs for trial in rung.trials}
        self.planned = [trial for rung in rungs for trial in rung.trials[: rung.size]]

    def schedule(self, values: Mapping[str, float]) -> Schedule:
        """Returns the trials to run, and whether others may follow.

        They depend only on the results, not on which worker found them or when: any number of
        workers, however often they are killed, schedule the same trials.

        Args:
            values: Objective of the trials that are done, by key; -inf for those that failed for
                good.
        """
        schedules = [_halve(cell.rungs, values) for cell in self.cells.values()]
        return Schedule(
            [trial for schedule in schedules for trial in schedule.trials],
            any(schedule.more for schedule in schedules),
        )


def _rungs(trials: Sequence[Trial], sizes: Mapping[float, int]) -> list[Rung]:
    """Lays out the rungs of a cell, whose grid may be smaller than that of its row elsewhere."""
    candidates = trials[: max(sizes.values())]
    limits = [min(size, len(candidates)) for size in sizes.values()]
    return [
        Rung(
            [space.scaled(trial, fraction) if fraction < 1 else trial for trial in candidates], size
        )
        for fraction, size, following in zip(sizes, limits, [*limits[1:], 0], strict=True)
        if size > following
    ]


def _halve(rungs: Sequence[Rung], values: Mapping[str, float]) -> Schedule:
    """Schedules successive halving in one cell.

    Source: Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943, algorithm 1; but each rung
    trains from the start, since the schedules have other lengths.
    """
    scheduled: list[Trial] = []
    order = list(range(len(rungs[0].trials)))
    for number, rung in enumerate(rungs):
        on_rung = [rung.trials[i] for i in order[: rung.size]]
        scheduled.extend(on_rung)
        if any(trial.key not in values for trial in on_rung):
            return Schedule(scheduled, more=number + 1 < len(rungs))
        # A stable sort: of equal trials, the one nearest to the paper's region comes first.
        order = sorted(order[: rung.size], key=lambda i: -values[rung.trials[i].key])
    return Schedule(scheduled, more=False)
