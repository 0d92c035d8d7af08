"""The record of a run with a time budget, in its folder, from which it resumes."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.budget import plan
from remem_jax.budget.plan import Speeds, Stage
from remem_jax.storage import results

FILE = "budget.json"
_SAVE_SECONDS = 20.0  # Between two records of the time, which a killed run loses.


class Record(NamedTuple):
    """What a run has planned and done.

    Attributes:
        settings: Settings that were planned, by name: {"data.image_size": 96}.
        speeds: Speeds that were measured last.
        stages: Stages that are done.
        seconds: Seconds that the run took so far, in all its starts.
        failed: Methods without a result, each with the reason.
    """

    settings: Mapping[str, Any]
    speeds: Speeds | None = None
    stages: tuple[Stage, ...] = ()
    seconds: float = 0.0
    failed: Mapping[str, str] = {}


def read(directory: pathlib.Path) -> Record | None:
    """Reads the record of a run; None if it has not begun."""
    content = results.read(directory / FILE)
    if content is None:
        return None
    return Record(
        content["settings"],
        content["speeds"] and Speeds(**content["speeds"]),
        tuple(map(plan.read, content["stages"])),
        content["seconds"],
        content["failed"],
    )


class Clock:
    """The time that a run has taken, and the record of what it has done.

    Attributes:
        record: The record, without the time since this start.
    """

    def __init__(
        self, directory: pathlib.Path, record: Record, *, hours: float, began: float
    ) -> None:
        """Continues a record.

        Args:
            directory: Folder of the run.
            record: Its record so far.
            hours: Hours of the run in all.
            began: Value of `time.monotonic` when this start of the run began.
        """
        self.record, self._directory = record, directory
        self._limit, self._began, self._saved = 3600 * hours, began, began

    def spent(self) -> float:
        """Returns the seconds that the run has taken."""
        return self.record.seconds + time.monotonic() - self._began

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self._limit - self.spent()

    def update(self, **changes: Any) -> None:
        """Changes fields of the record, and writes it."""
        self.record = self.record._replace(**changes)
        self.save()

    def tick(self) -> None:
        """Records the time now and then; to be called after every step."""
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the record, with the time that the run has taken."""
        self._saved = time.monotonic()
        record = self.record
        content = {
            "settings": dict(record.settings),
            "speeds": record.speeds and record.speeds._asdict(),
            "stages": [stage._asdict() for stage in record.stages],
            "seconds": self.spent(),
            "failed": dict(record.failed),
        }
        results.write_for_all(self._directory / FILE, content)
