"""Rows of tools/benchmark.py, on this device."""

import functools
from collections.abc import Callable
from typing import Any

from tools.benchmarks import facts, rates, rows, theirs, turns
from tools.benchmarks import report as records
from tools.gpu import worker

REPEATS = 4  # Turns of each side, of `rates.STEPS` steps.


def measure(
    context: worker.Context, report: worker.Report, seconds: float, *, row: str
) -> worker.Found:
    """A row of `rows.GPU`, with torch and timm beside it where they are installed.

    Tiny rows have our side alone, in this process: another would cost more than they do.
    """
    del seconds
    if context.tiny:
        chosen, times = rows.tiny(rows.GPU[row]), turns.Turns(1, steps=1, warm_up=0)
        return rates.measure(row, chosen, ["ours"], times, "cpu", apart=False)
    lacking = _peers_missing()
    report({"peers_missing": lacking})
    sides = ["ours"] if lacking else ["ours", "theirs"]
    times = turns.Turns(REPEATS, rates.STEPS, rates.WARM_UP)
    found = rates.measure(row, rows.GPU[row], sides, times, _kind(), apart=True)
    return found | {"peers_missing": lacking}


def students(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Students on one pass of their teacher, in runs apart, and on stored outputs."""
    del report, seconds
    if context.tiny:
        grid = rows.tiny_grid(rows.GPU_GRID)
        return records.of_students(grid, _train_students(grid))
    return records.of_students(rows.GPU_GRID, _apart(_train_students, rows.GPU_GRID))


@functools.cache
def _peers_missing() -> str:
    return _apart(theirs.missing, "gpu")


@functools.cache
def _kind() -> str:
    return _apart(facts.devices)["kind"]


def _train_students(grid: rows.Grid) -> dict[str, Any]:
    from tools.benchmarks import lockstep

    return lockstep.compare(grid, 1)


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which then leaves the device to others."""
    with turns.child() as call:
        return call(function, *arguments)
