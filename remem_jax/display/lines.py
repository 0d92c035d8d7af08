"""Progress as lines of the log, where there is no terminal."""

from absl import logging

from remem_jax.display import board
from remem_jax.display.durations import duration

_SECONDS = (10.0, 60.0)  # Least and largest time between two lines.
_SHARE = 0.05  # Time between two lines, as a share of the time of the stage.


class Lines:
    """Logs the progress of stages now and then, and their end."""

    def __init__(self, shown: board.Board) -> None:
        self._board, self._printed = shown, 0.0

    def changed(self) -> None:
        """Does nothing: a stage is logged when it has something to say."""

    def stop(self, *, failed: bool) -> None:
        """Does nothing: what has been logged stays."""
        del failed

    def advanced(self, stage: board.Stage) -> None:
        """Logs a line if the last one is old, or if the stage is complete."""
        now, (least, largest) = self._board.clock(), _SECONDS
        took = now - stage.started
        due = now - max(self._printed, stage.started) >= min(max(least, _SHARE * took), largest)
        ends = stage.complete and stage.steps is not None and took >= board.SHORT_SECONDS
        if due or ends:
            self._printed = now
            logging.info("%s", line(self._board, stage))


def line(shown: board.Board, stage: board.Stage) -> str:
    """Returns a line on a stage: its steps, their speed, and the time left."""
    parts = [counted(stage)]
    if rate := stage.rate():
        parts.append(speed(stage, rate))
    if stage.complete and stage.steps is not None:
        parts.append(f"took {duration(shown.clock() - stage.started)}")
    elif (left := stage.seconds_left()) is not None:
        parts.append(f"{duration(left)} left")
    if (of_run := shown.seconds_left()) is not None:
        parts.append(f"{duration(of_run)} for the run")
    return f"{stage.title}, {', '.join(parts)}"


def counted(stage: board.Stage) -> str:
    """Returns the number of steps done, such as "step 3 of 8" or "3 of 8 MiB"."""
    if stage.unit == "MiB":
        of = "" if stage.steps is None else f" of {stage.steps}"
        return f"{stage.done}{of} MiB"
    of = "" if stage.steps is None else f" of {stage.steps}"
    return f"{stage.unit} {stage.done}{of}"


def speed(stage: board.Stage, rate: float) -> str:
    """Returns a rate with its unit, such as "2.31 steps/s"."""
    unit = stage.unit if stage.unit == "MiB" else f"{stage.unit}s"
    return f"{rate:.2f} {unit}/s" if rate < 100 else f"{rate:.0f} {unit}/s"
