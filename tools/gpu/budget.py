"""Time limits of the items of a measurement, so that all of it ends in time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One thing to measure.

    Attributes:
        name: Name in the record.
        section: Section whose share of the time it uses; see `Budget`.
        call: "module:function" that measures it. A worker calls it with a `worker.Context`, a
            function that reports partial results, the seconds it has, and `arguments`.
        arguments: JSON values by name.
        limit: Seconds after which it is stopped.
        least: Seconds that must be left for it to start.
        required: Whether its failure ends the measurement.
    """

    name: str
    section: str
    call: str
    arguments: Mapping[str, Any]
    limit: float
    least: float
    required: bool = False


class Budget:
    """The time that is left, for each section and in all.

    A section has its own share of the time and what the sections before it have left.

    Args:
        seconds: Time from now on, for all sections.
        shares: Section -> share of the seconds, in the order of the sections.
        clock: Returns the time in seconds; only differences matter.
    """

    def __init__(
        self, seconds: float, shares: Mapping[str, float], clock: Callable[[], float]
    ) -> None:
        """Starts the clock."""
        self._clock, begun = clock, clock()
        self._end, so_far, self._ends = begun + seconds, 0.0, {}
        for section, share in shares.items():
            so_far += share
            self._ends[section] = begun + so_far * seconds

    def left(self) -> float:
        """Returns the seconds until the end."""
        return self._end - self._clock()

    def allowed(self, item: Item, *, whole: bool) -> float:
        """Returns the seconds that an item may take; 0 if they are fewer than it needs.

        Args:
            item: The item to start now.
            whole: Whether it may use the time of other sections, too.
        """
        end = self._end if whole else min(self._ends[item.section], self._end)
        seconds = min(item.limit, end - self._clock())
        return seconds if seconds >= item.least else 0.0
