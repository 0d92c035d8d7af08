"""A row of a GPU: both sides take turns, in processes of their own or in this one."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from tools.benchmarks import report, turns
from tools.benchmarks.rows import Row

STEPS, WARM_UP = 20, 5  # Of a turn, and before the first.
# JAX takes part of a GPU's memory when it starts, and would leave too little to torch.
_SHARE, _SHARE_ALONE = "0.45", "0.92"


def measure(
    name: str, row: Row, sides: Sequence[str], times: turns.Turns, kind: str, *, apart: bool
) -> dict[str, Any]:
    """Measures a row in seconds on the wall.

    Args:
        name: Of the row.
        row: What is done; a row with a plan has our side alone.
        sides: "ours", or both.
        times: How the sides take turns.
        kind: JAX's name of the device.
        apart: Whether each side is a process of its own.

    Returns:
        `report.of_gpu`, with "theirs_failed" where torch raised an error.
    """
    from remem_jax.train import flops  # Imports JAX, which waits until the core is chosen.

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
            except Exception as error:  # Whatever torch raises, our side goes on.
                if side == "ours":
                    raise
                failure = {"theirs_failed": report.brief(error)}
        seconds = turns.alternate(players, times)
        memory = [player.memory() for player in players]
    found = report.of_gpu(
        name,
        row,
        seconds,
        [player.first for player in players],
        operations=players[0].operations,
        peak=flops.peak(kind, row.work.dtype),
    )
    for side, peak in zip(("ours", "theirs"), memory, strict=False):
        found[side]["peak_bytes"] = peak
    return found | failure


@contextlib.contextmanager
def _memory_share(share: str) -> Any:
    """What processes that begin meanwhile give JAX of a GPU, unless the user has said so."""
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if name in os.environ:
        yield
        return
    os.environ[name] = share
    try:
        yield
    finally:
        del os.environ[name]
