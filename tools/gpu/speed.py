"""Measures rows of tools/benchmark.py on this device."""

import functools
from collections.abc import Callable
from typing import Any

from tools.benchmarks import facts, rates, rows, theirs, turns
from tools.benchmarks import report as records
from tools.gpu import worker

REPEATS = 4  # Turns of each side, each with `rates.STEPS` steps.


def measure(
    context: worker.Context, report: worker.Report, seconds: float, *, row: str
) -> worker.Found:
    """Measures a row of `rows.GPU`, and the same in torch and timm if they are installed.

    Tiny rows measure only our side, in this process, because starting another one takes longer.
    """
    del seconds
    if context.tiny:
        chosen, times = rows.tiny(rows.GPU[row]), turns.Turns(1, steps=1, warm_up=0)
        chosen = chosen._replace(work=chosen.work._replace(variant=rows.TINY_TEACHER))
        return rates.measure(row, chosen, ["ours"], times, "cpu", apart=False)
    lacking = _peers_missing()
    report({"peers_missing": lacking})
    sides = ["ours"] if lacking else ["ours", "theirs"]
    times = turns.Turns(REPEATS, rates.STEPS, rates.WARM_UP)
    measured = rates.measure(row, rows.GPU[row], sides, times, _kind(), apart=True)
    return measured | {"peers_missing": lacking}


def students(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Measures students on one pass of their teacher, in separate runs, and on stored outputs."""
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
    """Calls a function in its own process, which then frees the device, and returns the result."""
    with turns.child() as call:
        return call(function, *arguments)
