"""Times two sides in turns, in this process or each in its own process."""

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from tools.benchmarks.rows import Work

# CPU-seconds for one core; wall-clock seconds for several cores and GPUs.
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


class Side(NamedTuple):
    """One side of a row.

    Attributes:
        run: Does the work once, or starts it on the device.
        wait: Waits until all work that was started is done.
        operations: Floating-point operations of one run; 0 if they are not counted.
        memory: Peak bytes of device memory of this process; None if they are not counted.
    """

    run: Callable[[], Any]
    wait: Callable[[], Any]
    operations: Callable[[], float]
    memory: Callable[[], int | None]


class Turns(NamedTuple):
    """How the sides take turns.

    Attributes:
        repeats: Number of turns of each side.
        steps: Runs in a turn; a GPU queues the next run before one is done.
        warm_up: Runs after the first that are not timed.
    """

    repeats: int
    steps: int
    warm_up: int


class Player(NamedTuple):
    """The interface of a side, which may run in another process.

    Attributes:
        first: Seconds of the first run, which compiles.
        operations: Floating-point operations of one run.
        turn: Does a number of runs and returns the seconds of one.
        memory: See `Side`.
    """

    first: float
    operations: float
    turn: Callable[[int], float]
    memory: Callable[[], int | None]


def images(work: Work) -> Any:
    """Returns the images of both sides, channels last."""
    import numpy as np

    shape = (work.batch, work.pixels, work.pixels, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def cores() -> set[int]:
    """Returns the cores that this process may use."""
    return os.sched_getaffinity(0)


def alternate(players: Sequence[Player], turns: Turns) -> list[list[float]]:
    """Returns the seconds of one run, for each player and turn."""
    if turns.warm_up:
        for player in players:
            player.turn(turns.warm_up)
    rounds = [[player.turn(turns.steps) for player in players] for _ in range(turns.repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def here(who: str, work: Work, clock: str) -> Player:
    """Starts a side, "ours" or "theirs", in this process, timed by one of `CLOCKS`."""
    side = _make(who, work)
    first = _timed(side, clock, 1)
    return Player(first, side.operations(), lambda steps: _timed(side, clock, steps), side.memory)


@contextlib.contextmanager
def apart(who: str, work: Work, clock: str, cores: Collection[int] = ()) -> Iterator[Player]:
    """Starts a side in its own process, timed by one of `CLOCKS`.

    JAX and torch may then load different builds of the same library, each allocates memory as it
    would alone, and its device memory is free when the row is done. One side waits while the other
    runs.

    Args:
        who: "ours" or "theirs".
        work: The work.
        clock: Name of one of `CLOCKS`.
        cores: Cores that the process runs on; empty for all.
    """
    with child(cores) as call:
        first, operations = call(_begin, who, work, clock)
        yield Player(
            first, operations, lambda steps: call(_turn, steps, clock), lambda: call(_peak_memory)
        )


@contextlib.contextmanager
def child(cores: Collection[int] = ()) -> Iterator[Callable[..., Any]]:
    """Starts a fresh process, and yields a function that calls other functions there.

    Args:
        cores: Cores that it runs on; empty for all.

    Raises:
        RuntimeError: If this process may not use one of the cores.
    """
    lacking = set(cores) - os.sched_getaffinity(0)
    if lacking:
        raise RuntimeError(f"This process cannot use core {min(lacking)}; set --core.")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        if cores:  # Libraries choose their number of threads when imported.
            pool.submit(os.sched_setaffinity, 0, cores).result()
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


_playing: list[Side] = []  # The side of a child process.


def _begin(who: str, work: Work, clock: str) -> tuple[float, float]:
    side = _make(who, work)
    _playing.append(side)
    return _timed(side, clock, 1), side.operations()


def _turn(steps: int, clock: str) -> float:
    return _timed(_playing[0], clock, steps)


def _peak_memory() -> int | None:
    return _playing[0].memory()


def _make(who: str, work: Work) -> Side:
    # Imported by name, so that each process imports only the libraries of its side.
    return importlib.import_module(f"tools.benchmarks.{who}").make(work)


def _timed(side: Side, clock: str, steps: int) -> float:
    started = CLOCKS[clock]()
    for _ in range(steps):
        side.run()
    side.wait()
    return (CLOCKS[clock]() - started) / steps
