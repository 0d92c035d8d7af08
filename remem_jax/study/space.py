"""What a study tries: the trials of its table, each a run with settings of its own."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.methods import METHODS
from remem_jax.settings import check_remem, plain, values
from remem_jax.storage import results
from remem_jax.storage.identity import described

SEARCHES = ("grid", "halving")
Identify = Callable[[ConfigDict], str]


class Trial(NamedTuple):
    """One teacher, with all its checkpoints, and all the students of each.

    Attributes:
        key: Of its identity: two trials with one key are one.
        row: Its row of the table.
        column: Its column.
        seed: `config.seed` of its run.
        point: What the grid sets: settings of `config.teacher`, by name.
        fraction: Of the full number of steps.
        config: Of its run.
        identify: Gives the key of settings.
    """

    key: str
    row: str
    column: str
    seed: int
    point: Mapping[str, float]
    fraction: float
    config: ConfigDict
    identify: Identify

    @property
    def cell(self) -> tuple[str, str, int]:
        """Trials of one cell compete: the best of them is what the table shows."""
        return self.row, self.column, self.seed


def check(config: ConfigDict) -> None:
    """Raises `SettingError` for the first setting of a study that cannot be used."""
    values.check(config)
    checks.one_of("config.search.kind", config.search.kind, SEARCHES)
    checks.at_least("config.search.reduction", config.search.reduction, 2)
    checks.at_least("config.search.rungs", config.search.rungs, 1)
    checks.within("config.search.budget", config.search.budget, 0, 1)
    checks.above("config.heartbeat_seconds", config.heartbeat_seconds, 0)
    checks.at_least("config.grace_seconds", config.grace_seconds, 3 * config.heartbeat_seconds)
    checks.at_least("config.attempts", config.attempts, 1)
    checks.require(len(config.seeds) > 0, "config.seeds must hold at least one value.")
    checks.require(bool(config.name), "config.name must name the study in its storage.")
    for name, order in (("rows", config.row_order), ("columns", config.column_order)):
        complete = len(order) > 0 and sorted(order) == sorted(config[name])
        checks.require(
            complete,
            f"config.{name[:-1]}_order must name all of config.{name}, in the table's order; got "
            f"{tuple(order)} for {', '.join(sorted(config[name])) or 'none'}.",
        )
    for name, tried in config.grid.items():
        where = f"config.grid.{name}"
        checks.one_of(where, name, config.base.teacher)
        checks.require(len(tried) > 0, f"{where} must hold at least one value.")
        if name in config.search.near:
            checks.one_of(f"config.search.near.{name}", config.search.near[name], tried)
    for name in _named(config):
        checks.one_of("config.only", name, (*config.row_order, *config.column_order))
    for trial in trials(config):
        try:
            check_remem(trial.config)
        except checks.SettingError as error:
            raise checks.SettingError(f"{trial.row}, {trial.column}: {error}") from error


def key_by_place(config: ConfigDict) -> str:
    """A hash of a run's settings and of where its images and weights lie, whatever they are.

    It tells trials apart before their images are read. Studies of older versions have no other key.
    """
    return results.fingerprint(described(plain(config)))


def trials(config: ConfigDict, identify: Identify = key_by_place) -> list[Trial]:
    """All trials of a study in full, those that the paper's best region is near to first.

    Settings that a row's method does not leave free (`METHODS`) are not varied in it, and
    without a teacher none is.

    Args:
        config: Of the study.
        identify: Gives the key of a run's settings.
    """
    found: dict[str, Trial] = {}
    for row, column, seed in _cells(config):
        own = config.rows[row]
        for point in _points(config, own.method):
            trial = _trial(config, (row, column, seed), point, identify)
            found.setdefault(trial.key, trial)
    return list(found.values())


def scaled(trial: Trial, fraction: float) -> Trial:
    """The same trial with a fraction of the steps, of its teacher and of its students."""
    config = trial.config.copy_and_resolve_references()
    teacher, student = config.teacher, config.student
    whole = teacher.steps[-1]
    teacher.steps = tuple(sorted({max(1, round(fraction * step)) for step in teacher.steps}))
    teacher.warmup_steps = min(_share(teacher.warmup_steps, whole, teacher.steps[-1]))
    whole = student.steps
    student.steps = max(1, round(fraction * whole))
    student.warmup_steps = min(_share(student.warmup_steps, whole, student.steps))
    student.evaluations = min(student.evaluations, student.steps)
    return trial._replace(key=trial.identify(config), fraction=fraction, config=config)


def _share(part: int, whole: int, new: int) -> tuple[int, int]:
    """The same share of another whole; and the most that it may be."""
    return round(part * new / whole), new - 1


def _cells(config: ConfigDict) -> Iterator[tuple[str, str, int]]:
    """The cells that are wanted, replicate by replicate, so that a first table is soon there."""
    named = _named(config)
    rows, columns = (
        [name for name in order if name in named or not named & set(order)]
        for order in (config.row_order, config.column_order)
    )
    for seed, column, row in itertools.product(config.seeds, columns, rows):
        yield row, column, seed


def _named(config: ConfigDict) -> set[str]:
    return {name.strip() for name in config.only.split(",")} - {""}


def _points(config: ConfigDict, method: str) -> list[dict[str, float]]:
    """The grid of a method, in steps of the grid from `config.search.near`, nearest first."""
    checks.one_of("the method of a row of config.rows", method, METHODS)
    free = {
        name: tuple(values)
        for name, values in config.grid.items()
        if METHODS[method].has_teacher and name not in METHODS[method].fixed
    }
    near = {name: config.search.near.get(name, values[0]) for name, values in free.items()}
    points = [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]

    def distance(point: Mapping[str, float]) -> int:
        return sum(
            abs(values.index(point[name]) - values.index(near[name]))
            for name, values in free.items()
        )

    return sorted(points, key=distance)


def _trial(
    config: ConfigDict,
    cell: tuple[str, str, int],
    point: Mapping[str, float],
    identify: Identify,
) -> Trial:
    row, column, seed = cell
    method = config.rows[row].method
    own = config.base.copy_and_resolve_references()
    with own.ignore_type():
        _apply(own, config.columns[column].changes, f"config.columns.{column}.changes")
        _apply(own, config.rows[row].changes, f"config.rows.{row}.changes")
        own.teacher.update(point)
        own.teacher.update(METHODS[method].fixed)  # What the method fixes is not what differs.
        own.methods = (method,)
        own.seed = seed
        own.differs = (*own.differs, *config.differs)
    return Trial(identify(own), row, column, seed, point, 1.0, own, identify)


def _apply(config: ConfigDict, changes: ConfigDict, where: str) -> None:
    """Changes settings that are there; a name that is not is a mistake."""
    for name, value in changes.items():
        checks.one_of(where, name, config)
        if isinstance(value, ConfigDict):
            _apply(config[name], value, f"{where}.{name}")
        else:
            config[name] = value


def grid_sizes(config: ConfigDict) -> dict[str, int]:
    """How many settings each row has in a cell, also rows that `config.only` leaves out."""
    return {row: len(_points(config, config.rows[row].method)) for row in config.row_order}


def halving_sizes(grids: Mapping[str, int], settings: ConfigDict) -> dict[str, dict[float, int]]:
    """How many settings of each row are tried with which fraction of the steps.

    Rows are compared, so they have one ladder: on its rung r of R there are
    reduction**(r - R + 1) of the full steps, and at most first // reduction**r settings of each
    row, but for one at least. So as many of each are tried in full; of a row whose grid has fewer,
    all are. A rung that no setting of a row is dropped from is left out in that row.

    `first` is as large as keeps the whole within `budget` of what trying everything in full would
    cost. With what is then left of it, more settings begin. All is counted in full trials, over
    the rows that have something to search.

    Args:
        grids: Number of settings of each row.
        settings: `config.search`.

    Returns:
        By row, the number of settings by the fraction of the steps, the lowest first.

    Raises:
        SettingError: If not even one of each row can be tried.
    """
    fractions, most = rung_fractions(settings), max(grids.values())
    held = settings.budget * sum(size for size in grids.values() if size > 1) + 1e-9

    def fitting(ladder: Sequence[int]) -> dict[str, dict[float, int]] | None:
        sizes = {row: _own_rungs(size, ladder, fractions) for row, size in grids.items()}
        spent = math.fsum(full_trials(sizes[row]) for row, size in grids.items() if size > 1)
        return sizes if spent <= held else None

    for first in range(most, 0, -1):
        ladder = [max(1, first // settings.reduction**r) for r in range(settings.rungs)]
        sizes = fitting(ladder)
        if sizes is None:
            continue
        more = range(most, first, -1) if settings.rungs > 1 else ()
        wider = (fitting([begin, *ladder[1:]]) for begin in more)
        return next((found for found in wider if found), sizes)
    raise checks.SettingError(
        f"config.search.budget of {settings.budget:g} is too little for grids of "
        f"{', '.join(str(size) for size in grids.values())}: raise it, or set "
        "config.search.kind to grid."
    )


def _own_rungs(size: int, ladder: Sequence[int], fractions: Sequence[float]) -> dict[float, int]:
    """The rungs of a row with so many settings: those that some are dropped from, and the last."""
    sizes = [min(size, most) for most in ladder]
    return {
        fraction: own
        for fraction, own, following in zip(fractions, sizes, [*sizes[1:], 0], strict=True)
        if own > following
    }


def full_trials(sizes: Mapping[float, int]) -> float:
    """What the rungs of a row cost together, in trials with all steps."""
    return math.fsum(fraction * size for fraction, size in sizes.items())


def rung_fractions(settings: ConfigDict) -> list[float]:
    """The fraction of the full steps on each rung, the last of which is 1."""
    return [float(settings.reduction) ** (r - settings.rungs + 1) for r in range(settings.rungs)]
