"""Measures a row on a GPU: both sides take turns, in separate processes or in this one."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from tools.benchmarks import report, turns
from tools.benchmarks.rows import Row

STEPS, WARM_UP = 20, 5  # Steps of a turn, and untimed steps before the first turn.
# Fraction of the GPU's memory that JAX allocates when it starts; torch needs the rest.
_SHARE, _SHARE_ALONE = "0.45", "0.92"


def measure(
    name: str, row: Row, sides: Sequence[str], times: turns.Turns, kind: str, *, apart: bool
) -> dict[str, Any]:
    """Measures a row in wall-clock seconds.

    Args:
        name: Name of the row.
        row: The row; a row with a plan has only our side.
        sides: "ours", or both.
        times: How the sides take turns.
        kind: JAX's name of the device.
        apart: Whether each side has its own process.

    Returns:
        The record of `report.of_gpu`, with "theirs_failed" if torch raised an error.
    """
    from remem_jax.train import flops  # Imports JAX, which must happen after the core is chosen.

    sides = ["ours"] if row.plan else sides
    failure = {}
    with contextlib.ExitStack() as stack, _memory_share(_SHARE_ALONE if row.plan else _SHARE):
        players = []
        for side in sides:
            try:
                players.append(
                    stack.enter_context(turns.apart(side, row.work, "wall"))
                    if apart
                    else turns.here(side, row.work, "wall")
                )
            except Exception as error:  # Any error of torch; our side is still measured.
                if side == "ours":
                    raise
                failure = {"theirs_failed": report.brief(error)}
        seconds = turns.alternate(players, times)
        memory = [player.memory() for player in players]
    record = report.of_gpu(
        name,
        row,
        seconds,
        [player.first for player in players],
        operations=players[0].operations,
        peak=flops.peak(kind, row.work.dtype),
    )
    for side, peak in zip(("ours", "theirs"), memory, strict=False):
        record[side]["peak_bytes"] = peak
    return record | failure


@contextlib.contextmanager
def _memory_share(share: str) -> Any:
    """Sets the share of a GPU's memory for new processes with JAX, unless the user has set it."""
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if name in os.environ:
        yield
        return
    os.environ[name] = share
    try:
        yield
    finally:
        del os.environ[name]
