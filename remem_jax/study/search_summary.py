"""Describes the search of a study, row by row, and the grid points that it dropped."""

import fractions
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from remem_jax.methods import METHODS
from remem_jax.study import axes, space
from remem_jax.study.search import Cell, Search
from remem_jax.study.space import Trial
from remem_jax.workflow.remem import student_grid


def record(
    config: ConfigDict,
    search: Search,
    scheduled: Sequence[Trial],
    validation: Mapping[str, float | None],
) -> dict[str, Any]:
    """Describes the search and its progress, as JSON values.

    Args:
        config: All settings of the study.
        search: The search.
        scheduled: All trials scheduled so far.
        validation: Best validation metric of each trial that is done, by key.

    Returns:
        "kind"; "seeds", those that are searched; "text", a description; "rows", the grid of each
        row, from the settings of its trials; "rungs", for each cell that is searched the size of
        its grid and the number of trials with each fraction of the steps; "dropped", grid points
        that were never tried with all steps.
    """
    keys = {trial.key for trial in scheduled}
    return {
        "kind": config.search.kind,
        "seeds": list(config.search.seeds or config.seeds),
        "text": _text(config),
        "rows": _rows(config, search),
        "rungs": [_rungs(cell, keys, validation) for cell in search.cells.values()],
        "dropped": [
            point for cell in search.cells.values() for point in _dropped(cell, keys, validation)
        ],
    }


def _rows(config: ConfigDict, search: Search) -> list[dict[str, Any]]:
    """Returns the grids of each row, with their columns; the seeds of a cell share one grid."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for (row, column, _), cell in search.cells.items():
        grid, grids = _grid(config, cell.trials), rows.setdefault(row, [])
        equal = next((entry for entry in grids if entry["grid"] == grid), None)
        if equal is None:
            grids.append({"row": row, "columns": [column], "grid": grid})
        elif column not in equal["columns"]:
            equal["columns"].append(column)
    return [entry for grids in rows.values() for entry in grids]


def _grid(config: ConfigDict, trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the grid of one cell: of its teacher, of other settings, and of its students."""
    (method,) = trials[0].config.methods
    tried = {
        name: _occurring(values, [trial.point[name] for trial in trials if name in trial.point])
        for name, values in axes.searched(config).items()
    }
    tried = {name: values for name, values in tried.items() if values}
    of_teacher = {name: tried[name] for name in tried if name in config.base.teacher}
    steps = {step for trial in trials for step in trial.config.teacher.steps}
    return {
        "settings": len(trials),
        "teacher": of_teacher,
        "others": {name: values for name, values in tried.items() if name not in of_teacher},
        "fixed": METHODS[method].fixed,
        "checkpoints": sorted(steps) if METHODS[method].has_teacher else [],
        "students": _students(method, trials),
    }


def _occurring(values: Sequence[Any], occurring: Sequence[Any]) -> list[Any]:
    """Returns the values of an axis that occur: numbers sorted, others in the order of the axis."""
    found = [value for value in values if value in occurring]
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def _students(method: str, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Returns the values of each hyperparameter of the students in any of the trials, by loss."""
    has_axes = any(name.startswith("student.") for trial in trials for name in trial.point)
    losses: dict[str, dict[str, Any]] = {}
    for trial in trials if has_axes else trials[:1]:
        student = trial.config.student
        for point in student_grid.points(student, method):
            loss = point.loss if METHODS[method].has_teacher else None
            used = student_grid.hyperparameters(point, hard_labels=bool(student.hard_labels))
            of_loss = losses.setdefault(point.loss, {"loss": loss})
            for name in ("learning_rate", "temperature", "weight", "seed"):
                values = of_loss.setdefault(name, [])
                if used[name] is not None and used[name] not in values:
                    values.append(used[name])
    return list(losses.values())


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
    """Returns the grid points known to get no trial with all steps: never started, or dropped."""
    dropped = []
    for index, full_trial in enumerate(cell.trials):
        on_rungs = [rung.trials[index] for rung in cell.rungs if index < len(rung.trials)]
        reached = [rung_index for rung_index, trial in enumerate(on_rungs) if trial.key in keys]
        if reached and not _is_decided(cell, reached[-1], keys):
            continue
        last = on_rungs[reached[-1]] if reached else None
        dropped.append(
            {
                "row": full_trial.row,
                "column": full_trial.column,
                "seed": full_trial.seed,
                "settings": dict(full_trial.point),
                "fraction": last and last.fraction,
                "trial": last and last.key,
                "validation": last and validation.get(last.key),
            }
        )
    return dropped


def _is_decided(cell: Cell, rung: int, keys: set[str]) -> bool:
    """Returns whether it is known which grid points continue from a rung; False for the last."""
    above = cell.rungs[rung + 1 :]
    return bool(above) and any(trial.key in keys for trial in above[0].trials)


def _text(config: ConfigDict) -> str:
    """Describes the search in words."""
    if config.search.kind == "grid":
        grid = "The whole grid of each row, every setting with all steps."
        return " ".join([grid, *_repeated(config)])
    grids = space.grid_sizes(config)
    sizes = space.halving_sizes(grids, config.search)
    searched = [row for row, size in grids.items() if size > 1]
    spent = sum(space.full_trials(sizes[row]) for row in searched)
    total = sum(grids[row] for row in searched)
    of_rows = [f"{config.rows[row].title}: {_rungs_text(grids[row], sizes[row])}." for row in grids]
    share = f" ({100 * spent / total:.1f} %)" if total else ""
    return " ".join(
        [
            "Successive halving, for each column and seed. Settings start with a fraction of the "
            "steps; those that are best on validation go on to the next fraction, trained anew "
            "with schedules of that length. Every row gets the same number of full trials, or as "
            "many as its grid has.",
            *of_rows,
            f"Together the rows with more than one setting cost as much as {spent:.4g} full trials "
            f"of {total}{share}; config.search.budget allows {100 * config.search.budget:.4g} %. "
            "Settings that never start are those farthest, in steps of the grid, from "
            "config.search.near.",
            *_repeated(config),
        ]
    )


def _repeated(config: ConfigDict) -> list[str]:
    """Describes the search over seeds, as sentences; none if each seed has its own."""
    searched = config.search.seeds
    if not set(config.seeds) - set(searched or config.seeds):
        return []
    named = (
        f"seed {searched[0]}" if len(searched) == 1 else f"seeds {', '.join(map(str, searched))}"
    )
    return [
        f"Only {named} {'is' if len(searched) == 1 else 'are'} searched; the others repeat the "
        "setting of each row and column that is best there on validation"
        f"{', as the mean over these seeds' if len(searched) > 1 else ''}."
    ]


def _rungs_text(grid: int, sizes: Mapping[float, int]) -> str:
    """Describes how many settings of a row reach each rung."""
    if grid == 1:
        return "its one setting is tried in full"
    *short, last = sizes.items()
    rungs = [
        f"{size} {'start' if index == 0 else 'go on'} with {_fraction(fraction)} of the steps"
        for index, (fraction, size) in enumerate(short)
    ]
    full = f"{last[1]} {'is' if last[1] == 1 else 'are'} tried in full"
    note = " (its whole grid)" if last[1] == grid else ""
    return f"of {grid} settings, {', '.join([*rungs, full])}{note}"


def _fraction(value: float) -> str:
    return str(fractions.Fraction(value).limit_denominator(10**9))
