"""Makes the trials of a study: the configurations of its table, each with its own settings."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.methods import ALONE, METHODS, SCRATCH
from remem_jax.settings import check_remem, plain, values
from remem_jax.storage import results
from remem_jax.storage.identity import described, without_additions
from remem_jax.study import axes

SEARCHES = ("grid", "halving")
_IN_STEPS = ("steps", "probe_steps", "warmup_steps")  # Settings of the teacher.
Identify = Callable[[ConfigDict], str]


class Trial(NamedTuple):
    """A run of a study: a teacher with all its checkpoints, and all the students of each.

    Attributes:
        key: Key of its identity; trials with the same key are one run, which their cells share.
        row: Row of the table.
        column: Column of the table.
        seed: `config.seed` of the run.
        point: Grid point: the values of the axes that have an effect in the trial, by name; see
            `axes`.
        fraction: Fraction of the full number of steps.
        config: Settings of the run.
        identify: Returns the key of the settings of a run.
    """

    key: str
    row: str
    column: str
    seed: int
    point: Mapping[str, Any]
    fraction: float
    config: ConfigDict
    identify: Identify

    @property
    def cell(self) -> tuple[str, str, int]:
        """Row, column and seed: the table shows the best trial of each cell."""
        return self.row, self.column, self.seed


def check(config: ConfigDict) -> None:
    """Raises `SettingError` for the first invalid setting of a study."""
    values.check(config)
    checks.one_of("config.search.kind", config.search.kind, SEARCHES)
    checks.at_least("config.search.reduction", config.search.reduction, 2)
    checks.at_least("config.search.rungs", config.search.rungs, 1)
    checks.within("config.search.budget", config.search.budget, 0, 1)
    checks.above("config.heartbeat_seconds", config.heartbeat_seconds, 0)
    checks.at_least("config.grace_seconds", config.grace_seconds, 3 * config.heartbeat_seconds)
    checks.at_least("config.attempts", config.attempts, 1)
    checks.require(len(config.seeds) > 0, "config.seeds must hold at least one value.")
    for seed in config.search.seeds:
        checks.one_of("config.search.seeds", seed, config.seeds)
    checks.require(
        bool(config.name), "config.name must be the name of the study in its storage; it is empty."
    )
    for name, order in (("rows", config.row_order), ("columns", config.column_order)):
        complete = len(order) > 0 and sorted(order) == sorted(config[name])
        checks.require(
            complete,
            f"config.{name[:-1]}_order must list all names in config.{name}, in the order of the "
            f"table; got {tuple(order)} for {', '.join(sorted(config[name])) or 'none'}.",
        )
    _check_comparisons(config)
    for row in config.row_order:
        _check_method(config, row)
    axes.check(config)
    for name in _selected_names(config):
        checks.one_of("config.only", name, (*config.row_order, *config.column_order))
    for trial in trials(config):
        checks.require(
            bool(trial.config.data.validation) == bool(config.base.data.validation),
            f"{trial.row}, {trial.column}: config.data.validation is "
            f"{trial.config.data.validation}, but config.base.data.validation is "
            f"{config.base.data.validation}: trials cannot be compared if some are selected on "
            "validation and others on test.",
        )
        try:
            check_remem(trial.config)
        except checks.SettingError as error:
            where = ", ".join([trial.row, trial.column, *axes.described(trial.point)])
            raise checks.SettingError(f"{where}: {error}") from error


def _check_comparisons(config: ConfigDict) -> None:
    """Checks what the report compares: the baseline and the claims."""
    checks.at_least("config.margin", config.margin, 0)
    checks.one_of("config.baseline", config.baseline, ("", *config.row_order))
    for name, claim in config.claims.items():
        where = f"config.claims.{name}"
        checks.require(
            sorted(claim) == ["baseline", "row", "title"] and bool(claim.title),
            f"{where} must have a title, a row and a baseline; got {claim.to_dict()}.",
        )
        for role in ("row", "baseline"):
            checks.one_of(f"{where}.{role}", claim[role], config.row_order)
        checks.require(
            claim.row != claim.baseline, f"{where} compares the row {claim.row} with itself."
        )


def _check_method(config: ConfigDict, row: str) -> None:
    """Checks the method of a row, and that the row does not change what the method fixes."""
    method = config.rows[row].method
    checks.one_of("the method of a row of config.rows", method, METHODS)
    changes = config.rows[row].changes.get("teacher", ConfigDict())
    for name, value in METHODS[method].fixed.items():
        checks.require(
            changes.get(name, value) == value,
            f"config.rows.{row}.changes.teacher.{name} is {changes.get(name)}, but the method "
            f"{method} sets it to {value}: take a method that leaves it free.",
        )


def selection(config: ConfigDict) -> str:
    """Returns the split that selects settings and trials: "validation", or "test" without it."""
    return "validation" if config.base.data.validation else "test"


def key_by_place(config: ConfigDict) -> str:
    """Returns a hash of a run's settings, with the paths of its images and weights.

    It identifies trials before their images are read. Studies of older versions have only this key.
    """
    return results.fingerprint(without_additions(described(plain(config))))


def places_of_record(record: Mapping[str, Any]) -> list[str]:
    """Returns what `key_by_place` may have returned for the settings of a run, from its results.

    These have the data type that the run computed in, where its settings may have had "auto", and
    the number of images that shared an ascent step, where they may have had -1.
    """
    settings = {name: value for name, value in record["config"].items() if name != "differs"}
    divided_by_devices = {**settings["teacher"], "ascent_examples": -1}
    candidates = [settings, {**settings, "teacher": divided_by_devices}]
    candidates += [{**each, "compute_dtype": "auto"} for each in candidates]
    return [results.fingerprint(without_additions(each)) for each in candidates]


def trials(config: ConfigDict, identify: Identify = key_by_place) -> list[Trial]:
    """Returns all trials of a study, with all steps; those near the paper's best region first.

    A row varies only axes that have an effect in it: settings of the teacher that its method
    (`METHODS`) does not fix, and others that neither the row nor the column changes. Cells whose
    settings are the same have trials of equal keys, such as those of a student without a teacher in
    columns of several teachers; such a trial is run once.

    Args:
        config: All settings of the study.
        identify: Returns the key of the settings of a run.
    """
    by_place: dict[tuple[tuple[str, str, int], str], Trial] = {}
    for cell in _cells(config):
        run = _cell_settings(config, cell)
        parts = _parts(config, cell[0])
        for point in _points(config, cell, run):
            trial = _trial(run, cell, point, parts, identify)
            by_place.setdefault((cell, trial.key), trial)
    return list(by_place.values())


def to_run(trials: Iterable[Trial]) -> dict[str, Trial]:
    """Returns trials by key: of those that several cells share, that of the first cell."""
    by_key: dict[str, Trial] = {}
    for trial in trials:
        by_key.setdefault(trial.key, trial)
    return by_key


def scaled(trial: Trial, fraction: float) -> Trial:
    """Returns the trial with a fraction of the steps of its teacher and its students."""
    config = trial.config.copy_and_resolve_references()
    teacher, student = config.teacher, config.student
    full = teacher.steps[-1]
    teacher.steps = tuple(sorted({max(1, round(fraction * step)) for step in teacher.steps}))
    teacher.probe_steps = _scaled_start(teacher.probe_steps, full, teacher.steps[-1])
    after_probe = teacher.steps[-1] - teacher.probe_steps
    warmup = _scaled_start(teacher.warmup_steps, full, teacher.steps[-1])
    teacher.warmup_steps = min(warmup, after_probe - 1)
    full = student.steps
    student.steps = max(1, round(fraction * full))
    student.warmup_steps = _scaled_start(student.warmup_steps, full, student.steps)
    student.evaluations = min(student.evaluations, student.steps)
    return trial._replace(key=trial.identify(config), fraction=fraction, config=config)


def _scaled_start(first: int, full: int, steps: int) -> int:
    """Scales the first steps of a schedule from the full number to another, less than all."""
    return min(round(first * steps / full), steps - 1)


def _cells(config: ConfigDict) -> Iterator[tuple[str, str, int]]:
    """Yields the cells to run, seed by seed, so that a whole table is complete early."""
    only = _selected_names(config)
    rows, columns = (
        [name for name in order if name in only or not only & set(order)]
        for order in (config.row_order, config.column_order)
    )
    for seed, column, row in itertools.product(config.seeds, columns, rows):
        yield row, column, seed


def _selected_names(config: ConfigDict) -> set[str]:
    return {name.strip() for name in config.only.split(",")} - {""}


def _points(
    config: ConfigDict, cell: tuple[str, str, int], run: ConfigDict
) -> list[dict[str, Any]]:
    """Returns the grid of a cell, sorted by the distance (in grid steps) from `search.near`.

    An axis that `search.near` does not have starts at its first value.
    """
    tried = axes.of_cell(config, cell[0], cell[1])
    nearest = {name: config.search.near.get(name, values[0]) for name, values in tried.items()}
    points = [
        dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())
    ]

    def distance(point: Mapping[str, Any]) -> int:
        return sum(
            abs(values.index(point[name]) - values.index(nearest[name]))
            for name, values in tried.items()
        )

    points = sorted(points, key=distance)
    if all(name in run.teacher for name in tried):
        return points
    effective = [axes.effective(run, point) for point in points]
    return [point for i, point in enumerate(effective) if point not in effective[:i]]


def _cell_settings(config: ConfigDict, cell: tuple[str, str, int]) -> ConfigDict:
    """Returns the settings that all trials of a cell share.

    A copy of them is fast, but `ignore_type` visits every setting several times.
    """
    row, column, seed = cell
    run = config.base.copy_and_resolve_references()
    with run.ignore_type():
        _apply(run, config.columns[column].changes, f"config.columns.{column}.changes")
        _apply(run, config.rows[row].changes, f"config.rows.{row}.changes")
        run.methods = (_method(config.rows[row].method, run),)
        run.seed = seed
        run.differs = (*run.differs, *config.differs)
    return run


def _parts(config: ConfigDict, row: str) -> dict[str, float]:
    """Returns the settings in steps that are parts of the number of steps of other rows."""
    parts = config.rows[row].get("parts", ConfigDict()).to_dict()
    for name, part in parts.items():
        checks.one_of(f"config.rows.{row}.parts", name, _IN_STEPS)
        checks.within(f"config.rows.{row}.parts.{name}", part, 0, 1)
    return parts


def _method(method: str, run: ConfigDict) -> str:
    """Returns the method of a row in a column, whose students may start from random weights."""
    return SCRATCH if method == ALONE and not run.student.init else method


def _trial(
    settings: ConfigDict,
    cell: tuple[str, str, int],
    point: Mapping[str, Any],
    parts: Mapping[str, float],
    identify: Identify,
) -> Trial:
    run = axes.with_point(settings, point)
    last = run.teacher.steps[-1]
    for name, part in parts.items():
        steps = round(part * last)
        run.teacher[name] = (max(1, steps),) if name == "steps" else steps
    return Trial(identify(run), *cell, point, 1.0, run, identify)


def _apply(config: ConfigDict, changes: ConfigDict, where: str) -> None:
    """Changes existing settings; an unknown name is an error."""
    for name, value in changes.items():
        checks.one_of(where, name, config)
        if isinstance(value, ConfigDict):
            _apply(config[name], value, f"{where}.{name}")
        else:
            config[name] = value


def grid_sizes(config: ConfigDict) -> dict[str, int]:
    """Returns the number of grid points of each row, also of rows left out by `config.only`.

    It is that of the column where it is largest: an axis may have no effect in some columns.
    """
    of_teacher = all(name in config.base.teacher for name in axes.searched(config))
    columns = config.column_order[:1] if of_teacher else config.column_order
    cells = {
        row: [(row, column, config.seeds[0]) for column in columns] for row in config.row_order
    }
    return {
        row: max(len(_points(config, cell, _cell_settings(config, cell))) for cell in of_row)
        for row, of_row in cells.items()
    }


def halving_sizes(grids: Mapping[str, int], settings: ConfigDict) -> dict[str, dict[float, int]]:
    """Returns how many grid points of each row are tried with which fraction of the steps.

    Rows are compared, so they share the sizes of their rungs: rung r of R has
    reduction**(r - R + 1) of the full steps and, of each row, first // reduction**r grid points,
    at least one. So the same number of each row is tried with all steps, or its whole grid if that
    is smaller. A row leaves out a rung that drops none of its grid points.

    `first` is the largest number that keeps the cost within `budget`, relative to trying the whole
    grid with all steps. The rest of the budget lets more grid points start on the first rung. Cost
    is counted in full trials, over the rows with more than one grid point.

    Args:
        grids: Number of grid points of each row.
        settings: `config.search`.

    Returns:
        For each row, the number of grid points by the fraction of the steps, lowest first.

    Raises:
        SettingError: If the budget does not suffice for one grid point of each row.
    """
    fractions, largest = rung_fractions(settings), max(grids.values())
    budget = settings.budget * sum(size for size in grids.values() if size > 1) + 1e-9

    def fitting(ladder: Sequence[int]) -> dict[str, dict[float, int]] | None:
        sizes = {row: _row_rungs(size, ladder, fractions) for row, size in grids.items()}
        spent = math.fsum(full_trials(sizes[row]) for row, size in grids.items() if size > 1)
        return sizes if spent <= budget else None

    for first in range(largest, 0, -1):
        ladder = [max(1, first // settings.reduction**r) for r in range(settings.rungs)]
        sizes = fitting(ladder)
        if sizes is None:
            continue
        starts = range(largest, first, -1) if settings.rungs > 1 else ()
        wider = (fitting([start, *ladder[1:]]) for start in starts)
        return next((wider_sizes for wider_sizes in wider if wider_sizes), sizes)
    raise checks.SettingError(
        f"config.search.budget of {settings.budget:g} is too small for grids of "
        f"{', '.join(str(size) for size in grids.values())}: raise it, or set "
        "config.search.kind to grid."
    )


def _row_rungs(grid: int, ladder: Sequence[int], fractions: Sequence[float]) -> dict[float, int]:
    """Returns the rungs of a row: those that drop some of its grid points, and the last."""
    sizes = [min(grid, limit) for limit in ladder]
    return {
        fraction: size
        for fraction, size, following in zip(fractions, sizes, [*sizes[1:], 0], strict=True)
        if size > following
    }


def full_trials(sizes: Mapping[float, int]) -> float:
    """Returns the cost of the rungs of a row, in trials with all steps."""
    return math.fsum(fraction * size for fraction, size in sizes.items())


def rung_fractions(settings: ConfigDict) -> list[float]:
    """Returns the fraction of the full steps on each rung; the last is 1."""
    return [float(settings.reduction) ** (r - settings.rungs + 1) for r in range(settings.rungs)]
