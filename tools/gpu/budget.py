"""How long each item of a measurement may take, so that all of it ends in time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One thing to measure.

    Attributes:
        name: In the record.
        section: Of those that share the time; see `Budget`.
        call: "module:function" of what measures it: called in a worker with a `worker.Context`,
            a function that reports what was found so far, the seconds it has, and `arguments`.
        arguments: JSON values, by name.
        limit: Seconds after which it is stopped.
        least: Seconds without which it is not worth starting.
        required: Whether nothing else is measured where it fails.
    """

    name: str
    section: str
    call: str
    arguments: Mapping[str, Any]
    limit: float
    least: float
    required: bool = False


class Budget:
    """Seconds that are left.

    A section ends, at the latest, after its share of the time and those of the sections before
    it: what they leave is its own as well.

    Args:
        seconds: In all, from now on.
        shares: Section -> share of the seconds, in the order of the sections.
        clock: Seconds, from anywhere on.
    """

    def __init__(
        self, seconds: float, shares: Mapping[str, float], clock: Callable[[], float]
    ) -> None:
        """Begins to count."""
        self._clock, begun = clock, clock()
        self._end, so_far, self._ends = begun + seconds, 0.0, {}
        for section, share in shares.items():
            so_far += share
            self._ends[section] = begun + so_far * seconds

    def left(self) -> float:
        """Seconds until the end."""
        return self._end - self._clock()

    def allowed(self, item: Item, *, whole: bool) -> float:
        """Seconds that an item may take; 0 where it is not worth starting.

        Args:
            item: To be started now.
            whole: Whether it may take what other sections have left, to the end.
        """
        end = self._end if whole else min(self._ends[item.section], self._end)
        seconds = min(item.limit, end - self._clock())
        return seconds if seconds >= item.least else 0.0
