"""Two sides that take turns, in this process or each in one of its own, and the clock."""

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from tools.benchmarks.rows import Work

# Of one core its own seconds; of several, and of a GPU, those on the wall.
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


class Side(NamedTuple):
    """One side of a row.

    Attributes:
        run: Does the work once, or has the device begin it.
        wait: Returns when all that was begun is done.
        operations: Floating-point operations of one run; 0 where they are not counted.
        memory: Bytes that this process has held of the device at its peak; None where nobody
            counts them.
    """

    run: Callable[[], Any]
    wait: Callable[[], Any]
    operations: Callable[[], float]
    memory: Callable[[], int | None]


class Turns(NamedTuple):
    """How the sides take turns.

    Attributes:
        repeats: Turns of each side.
        steps: Runs of a turn; a GPU has the next one in hand before one is done.
        warm_up: Runs that do not count, after the first.
    """

    repeats: int
    steps: int
    warm_up: int


class Player(NamedTuple):
    """A side as it is called from outside.

    Attributes:
        first: Seconds of the first run, which compiles.
        operations: Floating-point operations of one run.
        turn: Does so many runs; seconds of one.
        memory: See `Side`.
    """

    first: float
    operations: float
    turn: Callable[[int], float]
    memory: Callable[[], int | None]


def images(work: Work) -> Any:
    """What both sides see, channels last."""
    import numpy as np

    shape = (work.batch, work.pixels, work.pixels, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0)


def alternate(players: Sequence[Player], turns: Turns) -> list[list[float]]:
    """Seconds of one run, for each player and turn."""
    if turns.warm_up:
        for player in players:
            player.turn(turns.warm_up)
    rounds = [[player.turn(turns.steps) for player in players] for _ in range(turns.repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def here(who: str, work: Work, clock: str) -> Player:
    """A side, "ours" or "theirs", in this process, by one of `CLOCKS`."""
    side = _make(who, work)
    first = _timed(side, clock, 1)
    return Player(first, side.operations(), lambda steps: _timed(side, clock, steps), side.memory)


@contextlib.contextmanager
def apart(who: str, work: Work, clock: str, cores: Collection[int] = ()) -> Iterator[Player]:
    """A side in a process of its own, by one of `CLOCKS`.

    JAX and torch may then want other builds of the same library, each allocates as it does alone,
    and what one of them holds of the device's memory is free when its row is done. While one has
    its turn the other waits.

    Args:
        who: "ours" or "theirs".
        work: What is done.
        clock: Of `CLOCKS`.
        cores: Those that the process runs on; empty is all.
    """
    with child(cores) as call:
        first, operations = call(_begin, who, work, clock)
        yield Player(
            first, operations, lambda steps: call(_turn, steps, clock), lambda: call(_peak_memory)
        )


@contextlib.contextmanager
def child(cores: Collection[int] = ()) -> Iterator[Callable[..., Any]]:
    """A process that has imported nothing yet; what it gives calls a function there.

    Args:
        cores: Those that it runs on; empty is all.

    Raises:
        RuntimeError: If this process may not use one of them.
    """
    lacking = set(cores) - os.sched_getaffinity(0)
    if lacking:
        raise RuntimeError(f"Core {min(lacking)} is not there, or not for this process.")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        if cores:  # Before libraries count their threads.
            pool.submit(os.sched_setaffinity, 0, cores).result()
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


_playing: list[Side] = []  # Of a child.


def _begin(who: str, work: Work, clock: str) -> tuple[float, float]:
    side = _make(who, work)
    _playing.append(side)
    return _timed(side, clock, 1), side.operations()


def _turn(steps: int, clock: str) -> float:
    return _timed(_playing[0], clock, steps)


def _peak_memory() -> int | None:
    return _playing[0].memory()


def _make(who: str, work: Work) -> Side:
    # By name: a process that has one of the sides need not have the libraries of the other.
    return importlib.import_module(f"tools.benchmarks.{who}").make(work)


def _timed(side: Side, clock: str, steps: int) -> float:
    started = CLOCKS[clock]()
    for _ in range(steps):
        side.run()
    side.wait()
    return (CLOCKS[clock]() - started) / steps
