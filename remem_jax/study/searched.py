"""What a study has searched, row by row, and what its search left out, for the report."""

import fractions
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from remem_jax.settings import METHODS
from remem_jax.study import space
from remem_jax.study.search import Cell, Search
from remem_jax.study.space import Trial
from remem_jax.workflow.remem import student_setup


def record(
    config: ConfigDict,
    search: Search,
    wanted: Sequence[Trial],
    validation: Mapping[str, float | None],
) -> dict[str, Any]:
    """What was searched, and how far, as JSON values.

    Args:
        config: Of the study.
        search: Its search.
        wanted: All trials that it has wanted so far.
        validation: The best on validation of trials that are done, by key.

    Returns:
        "kind"; "text", how the search goes; "rows", the grid of each row, from the settings of its
        trials; "rungs", of each cell how many settings its grid has and how many of them are tried
        with which fraction of the steps; "dropped", settings that were never tried in full.
    """
    keys = {trial.key for trial in wanted}
    return {
        "kind": config.search.kind,
        "text": _text(config),
        "rows": _rows(config, search),
        "rungs": [_rungs(cell, keys, validation) for cell in search.cells.values()],
        "dropped": [
            one for cell in search.cells.values() for one in _dropped(cell, keys, validation)
        ],
    }


def _rows(config: ConfigDict, search: Search) -> list[dict[str, Any]]:
    """The grid of each row, and for which columns; the seeds of a cell have one grid."""
    found: dict[str, list[dict[str, Any]]] = {}
    for (row, column, _), cell in search.cells.items():
        grid, own = _grid(config.rows[row].method, cell.trials), found.setdefault(row, [])
        same = next((one for one in own if one["grid"] == grid), None)
        if same is None:
            own.append({"row": row, "columns": [column], "grid": grid})
        elif column not in same["columns"]:
            same["columns"].append(column)
    return [one for own in found.values() for one in own]


def _grid(method: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """What trials of one cell vary, and what their students do."""
    student, fixed = trials[0].config.student, METHODS[method]
    points = (
        student_setup.scratch_points(student)
        if fixed is None
        else student_setup.grid_points(student)
    )
    losses: dict[str, dict[str, Any]] = {}
    for point in points:
        loss = None if fixed is None else point.loss
        used = student_setup.hyperparameters(point, hard_labels=bool(student.hard_labels))
        own = losses.setdefault(point.loss, {"loss": loss})
        for name in ("learning_rate", "temperature", "weight", "seed"):
            values = own.setdefault(name, [])
            if used[name] is not None and used[name] not in values:
                values.append(used[name])
    names = list(trials[0].point)
    return {
        "settings": len(trials),
        "teacher": {name: sorted({trial.point[name] for trial in trials}) for name in names},
        "fixed": dict(fixed or {}),
        "checkpoints": [] if fixed is None else list(trials[0].config.teacher.steps),
        "students": list(losses.values()),
    }


def _rungs(cell: Cell, keys: set[str], validation: Mapping[str, float | None]) -> dict[str, Any]:
    row, column, seed = cell.trials[0].cell
    return {
        "row": row,
        "column": column,
        "seed": seed,
        "settings": len(cell.trials),
        "rungs": [
            {
                "fraction": rung.trials[0].fraction,
                "planned": rung.size,
                "reached": sum(trial.key in keys for trial in rung.trials),
                "done": sum(trial.key in validation for trial in rung.trials),
            }
            for rung in cell.rungs
        ],
    }


def _dropped(
    cell: Cell, keys: set[str], validation: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Settings that are never tried in full, as far as that is decided: never begun, or dropped."""
    found = []
    for number, full in enumerate(cell.trials):
        own = [rung.trials[number] for rung in cell.rungs if number < len(rung.trials)]
        reached = [place for place, trial in enumerate(own) if trial.key in keys]
        if reached and not _decided(cell, reached[-1], keys):
            continue
        last = own[reached[-1]] if reached else None
        found.append(
            {
                "row": full.row,
                "column": full.column,
                "seed": full.seed,
                "settings": dict(full.point),
                "fraction": last and last.fraction,
                "trial": last and last.key,
                "validation": last and validation.get(last.key),
            }
        )
    return found


def _decided(cell: Cell, rung: int, keys: set[str]) -> bool:
    """Whether it is known which settings have risen above a rung; from the last, none does."""
    above = cell.rungs[rung + 1 :]
    return bool(above) and any(trial.key in keys for trial in above[0].trials)


def _text(config: ConfigDict) -> str:
    """How the search goes, as it does."""
    if config.search.kind == "grid":
        return "The whole grid of each row, every setting with all steps."
    grids = space.grid_sizes(config)
    sizes = space.halving_sizes(grids, config.search)
    searched = [row for row, size in grids.items() if size > 1]
    spent = sum(space.full_trials(sizes[row]) for row in searched)
    whole = sum(grids[row] for row in searched)
    own = [f"{config.rows[row].title}: {_climb(grids[row], sizes[row])}." for row in grids]
    share = f" ({100 * spent / whole:.1f} %)" if whole else ""
    return " ".join(
        [
            "Successive halving, of each column and seed. Settings begin with few of the steps; "
            "those that are best on validation go on, and each trial begins again from the start, "
            "with schedules of its own length. As many settings of each row are tried in full, as "
            "far as its grid has them.",
            *own,
            f"Together the rows with more than one setting cost as much as {spent:.4g} full trials "
            f"of {whole}{share}; config.search.budget allows {100 * config.search.budget:.4g} %. "
            "What does not begin is farthest, in steps of the grid, from where the search begins "
            "(config.search.near).",
        ]
    )


def _climb(grid: int, sizes: Mapping[float, int]) -> str:
    """How many settings of a row reach each rung."""
    if grid == 1:
        return "one setting, which is tried in full; its grid has no more"
    *short, last = sizes.items()
    parts = [
        f"{size} {'begin' if place == 0 else 'go on'} with {_fraction(fraction)} of the steps"
        for place, (fraction, size) in enumerate(short)
    ]
    ends = f"{last[1]} {'is' if last[1] == 1 else 'are'} tried in full"
    more = "; its grid has no more" if last[1] == grid else ""
    return f"of {grid} settings {', '.join([*parts, ends])}{more}"


def _fraction(value: float) -> str:
    return str(fractions.Fraction(value).limit_denominator(10**9))
