"""The trials that a study schedules, given its results: a whole grid, or successive halving."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from remem_jax.study import space
from remem_jax.study.space import Trial

Place = tuple[str, str, int]  # Row, column and seed of a cell.


class Schedule(NamedTuple):
    """The trials that a study has scheduled so far.

    Attributes:
        trials: These trials.
        more: Whether further results will add trials.
        repeats: Trials of which further results will add one for each cell: those of seeds that
            are not searched, until it is known which grid point they repeat.
    """

    trials: list[Trial]
    more: bool
    repeats: tuple[Trial, ...] = ()


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
        cells: The cells that are searched, by row, column and seed.
        repeated: The grids of the cells whose seed is not in `config.search.seeds`. They get one
            trial: the grid point that is best on the seeds that are searched.
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
        by_cell: dict[Place, list[Trial]] = {}
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
            cell: Cell(grid, _rungs(grid, sizes[cell[0]]))
            for cell, grid in by_cell.items()
            if not settings.seeds or cell[2] in settings.seeds
        }
        self.repeated = {cell: grid for cell, grid in by_cell.items() if cell not in self.cells}
        rungs = [rung for cell in self.cells.values() for rung in cell.rungs]
        searched = [trial for rung in rungs for trial in rung.trials]
        repeats = [trial for grid in self.repeated.values() for trial in grid]
        self.by_key = space.to_run([*searched, *repeats])
        planned = [trial for rung in rungs for trial in rung.trials[: rung.size]]
        planned += [grid[0] for grid in self.repeated.values()]
        self.planned = list(space.to_run(planned).values())

    def schedule(self, values: Mapping[str, float]) -> Schedule:
        """Returns the trials to run, and whether others may follow.

        They depend only on the results, not on which worker found them or when: any number of
        workers, however often they are killed, schedule the same trials.

        Args:
            values: Objective of the trials that are done, by key; -inf for those that failed for
                good.
        """
        schedules = {place: _halve(cell.rungs, values) for place, cell in self.cells.items()}
        repeats = {
            place: self._repeat(place, grid, schedules, values)
            for place, grid in self.repeated.items()
        }
        scheduled = [trial for schedule in schedules.values() for trial in schedule.trials]
        unknown = [place for place, trial in repeats.items() if trial is None]
        return Schedule(
            [*scheduled, *(trial for trial in repeats.values() if trial is not None)],
            bool(unknown) or any(schedule.more for schedule in schedules.values()),
            tuple(trial for place in unknown for trial in self.repeated[place]),
        )

    def _repeat(
        self,
        place: Place,
        grid: Sequence[Trial],
        schedules: Mapping[Place, Schedule],
        values: Mapping[str, float],
    ) -> Trial | None:
        """Returns the trial of a cell that is not searched; None while it is not known.

        Its grid point is the best of the seeds that are searched: of those that most of these
        seeds tried with all steps, the one with the highest mean. Of equal points, the one nearest
        to the paper's region counts.
        """
        if len(grid) == 1:
            return grid[0]
        searched = [each for each in schedules if each[:2] == place[:2]]
        full = [trial for each in searched for trial in self.cells[each].rungs[-1].trials]
        if any(schedules[each].more for each in searched) or any(
            trial.key not in values for each in searched for trial in schedules[each].trials
        ):
            return None

        def rank(trial: Trial) -> tuple[int, float]:
            found = [
                values[other.key]
                for other in full
                if other.point == trial.point and other.key in values
            ]
            return len(found), statistics.fmean(found) if found else -math.inf

        return max(grid, key=rank)


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
