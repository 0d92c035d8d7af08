"""What a study tries: the trials of its table, each a run with settings of its own."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.settings import METHODS, check_remem, deciding, values
from remem_jax.storage import results

SEARCHES = ("grid", "halving")


class Trial(NamedTuple):
    """One teacher, with all its checkpoints, and all the students of each.

    Attributes:
        key: Hash of its settings: two trials with one key are one.
        row: Its row of the table.
        column: Its column.
        seed: `config.seed` of its run.
        point: What the grid sets: settings of `config.teacher`, by name.
        fraction: Of the full number of steps.
        config: Of its run.
    """

    key: str
    row: str
    column: str
    seed: int
    point: Mapping[str, float]
    fraction: float
    config: ConfigDict

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


def trials(config: ConfigDict) -> list[Trial]:
    """All trials of a study in full, those that the paper's best region is near to first.

    Settings that a row's method does not leave free (`METHODS`) are not varied in it, and
    without a teacher none is.
    """
    found: dict[str, Trial] = {}
    for row, column, seed in _cells(config):
        own = config.rows[row]
        for point in _points(config, own.method):
            trial = _trial(config, (row, column, seed), point)
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
    return trial._replace(key=_key(config), fraction=fraction, config=config)


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
    fixed = METHODS[method]
    free = {
        name: tuple(values)
        for name, values in config.grid.items()
        if fixed is not None and name not in fixed
    }
    near = {name: config.search.near.get(name, values[0]) for name, values in free.items()}
    points = [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]

    def distance(point: Mapping[str, float]) -> int:
        return sum(
            abs(values.index(point[name]) - values.index(near[name]))
            for name, values in free.items()
        )

    return sorted(points, key=distance)


def _trial(config: ConfigDict, cell: tuple[str, str, int], point: Mapping[str, float]) -> Trial:
    row, column, seed = cell
    method = config.rows[row].method
    own = config.base.copy_and_resolve_references()
    with own.ignore_type():
        _apply(own, config.columns[column].changes, f"config.columns.{column}.changes")
        _apply(own, config.rows[row].changes, f"config.rows.{row}.changes")
        own.teacher.update(point)
        own.teacher.update(METHODS[method] or {})  # What the method fixes is not what differs.
        own.methods = (method,)
        own.seed = seed
        own.differs = (*own.differs, *config.differs)
    return Trial(_key(own), row, column, seed, point, 1.0, own)


def _apply(config: ConfigDict, changes: ConfigDict, where: str) -> None:
    """Changes settings that are there; a name that is not is a mistake."""
    for name, value in changes.items():
        checks.one_of(where, name, config)
        if isinstance(value, ConfigDict):
            _apply(config[name], value, f"{where}.{name}")
        else:
            config[name] = value


def _key(config: ConfigDict) -> str:
    return results.fingerprint(deciding(config))


def halving_sizes(candidates: int, settings: ConfigDict) -> list[int]:
    """How many candidates are tried on each rung, the lowest first; each rung has more steps.

    On rung r of R there are reduction**(r - R + 1) of the full steps; the best of every
    `reduction` candidates rise. All candidates begin, or the first of them: as many as keep the
    whole below `budget` of what trying all in full would cost.

    Args:
        candidates: Number of trials in full.
        settings: `config.search`.

    Raises:
        SettingError: If not even one can be tried.
    """
    fractions = rung_fractions(settings)
    for first in range(candidates, 0, -1):
        sizes = [max(1, first // settings.reduction**r) for r in range(settings.rungs)]
        if math.fsum(map(float.__mul__, map(float, sizes), fractions)) <= (
            settings.budget * candidates + 1e-9
        ):
            return sizes
    raise checks.SettingError(
        f"config.search.budget of {settings.budget:g} is too little for a grid of {candidates}: "
        "raise it, or set config.search.kind to grid."
    )


def rung_fractions(settings: ConfigDict) -> list[float]:
    """The fraction of the full steps on each rung, the last of which is 1."""
    return [float(settings.reduction) ** (r - settings.rungs + 1) for r in range(settings.rungs)]
