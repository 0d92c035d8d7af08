"""Measures items in order, each within its time limit, and keeps partial results."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tools.gpu import record, worker
from tools.gpu.budget import Budget, Item

FINISHED, OUT_OF_TIME, ASKED_TO_STOP = "finished", "out of time", "asked to stop"
NOT_POSSIBLE = "not possible here"
_LISTEN = 1.0  # Maximum seconds between two checks of the clock.


def run(
    items: Sequence[Item],
    budget: Budget,
    kept: record.Record,
    start: Callable[[str], Any],
    stopping: Callable[[], bool],
    *,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> str:
    """Measures all items that are not finished.

    Items that do not fit into the time of their section are tried again at the end, with all the
    time that is left.

    Args:
        items: Items in the order of importance.
        budget: Time of all items.
        kept: Record of all results, including partial ones.
        start: Section -> a new `worker.Worker` for its items.
        stopping: Returns whether to stop now.
        clock: Clock of the budget.
        say: Prints a line.

    Returns:
        `FINISHED`, `OUT_OF_TIME` if there was not enough time for an item, `ASKED_TO_STOP`, or
        `NOT_POSSIBLE` if a required item failed.
    """
    workers = _Workers(start)
    waiting = [item for item in items if not kept.is_done(item.name)]
    cut = False
    try:
        for item, seconds in _in_time(waiting, budget):
            status = _measure(item, seconds, workers.get(item.section), kept, stopping, clock)
            say(_line(item, kept))
            if status != record.DONE:  # The worker may hang or be dead.
                workers.end()
            if stopping():
                return ASKED_TO_STOP
            if item.required and status != record.DONE:
                return NOT_POSSIBLE
            cut |= status == record.STOPPED
    finally:
        workers.end()
    if waiting:
        say(f"no time for {', '.join(item.name for item in waiting)}")
    return OUT_OF_TIME if waiting or cut else FINISHED


def _in_time(waiting: list[Item], budget: Budget) -> Iterator[tuple[Item, float]]:
    """Removes the items for which there is time from the waiting ones; yields them and the time."""
    for whole in (False, True):
        for item in list(waiting):
            seconds = budget.allowed(item, whole=whole)
            if seconds:
                waiting.remove(item)
                yield item, seconds


class _Workers:
    """Starts one worker at a time, for the items of one section."""

    def __init__(self, start: Callable[[str], Any]) -> None:
        self._start = start
        self._section, self._worker = "", None

    def get(self, section: str) -> Any:
        """Returns the worker of a section; ends that of another, which holds device memory."""
        if self._worker is None or self._section != section:
            self.end()
            self._section, self._worker = section, self._start(section)
        return self._worker

    def end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
        self._worker = None


def _measure(
    item: Item,
    seconds: float,
    process: Any,
    kept: record.Record,
    stopping: Callable[[], bool],
    clock: Callable[[], float],
) -> str:
    """Measures one item; returns its status."""
    begun, result = clock(), None

    def keep(status: str, **more: Any) -> str:
        spent = round(clock() - begun, 2)
        entry = {"seconds": spent, "limit": round(seconds, 2), "result": result}
        kept.keep(item.name, status=status, **entry, **more)
        return status

    process.begin(item, seconds)
    while True:
        left = begun + seconds - clock()
        if stopping():
            return keep(record.STOPPED, error=ASKED_TO_STOP)
        if left <= 0:
            return keep(record.STOPPED, error=f"stopped after {seconds:.0f} seconds")
        message = process.hear(min(left, _LISTEN))
        if message is None:
            continue
        kind, content = message
        if kind == worker.FAILED:
            return keep(record.FAILED, error=content)
        result = content
        if kind == worker.DONE:
            return keep(record.DONE)
        keep(record.STOPPED, error="cut short")  # Remains if this process is killed.


def _line(item: Item, kept: record.Record) -> str:
    entry = kept.content["items"][item.name]
    error = f": {entry['error']}" if "error" in entry else ""
    return f"{item.name}: {entry['status']} after {entry['seconds']:.0f} s{error}"
