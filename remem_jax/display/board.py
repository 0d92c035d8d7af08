"""What a run has done and has still to do, and how long that takes; nothing is shown here."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

SHORT_SECONDS = 1.0  # A stage that is not planned and ends sooner is not worth mentioning.
_EVIDENCE_SECONDS = 2.0  # Below this, the speed of a stage is not known: devices run behind.


class Planned(NamedTuple):
    """A stage to come.

    Attributes:
        title: The title that its stage will have, or the first words of that.
        work: Amount of work, in a unit that all stages of its kind share; 0 if unknown.
        kind: What stages that take the same time for a unit of work have in common.
    """

    title: str
    work: float = 0.0
    kind: str = ""


class Finished(NamedTuple):
    """A stage that has ended.

    Attributes:
        title: Title.
        seconds: Seconds that it took; None if it was finished in an earlier start of the run.
        missing: What it has not done, such as "step 20 of 40"; "" if it is complete.
    """

    title: str
    seconds: float | None
    missing: str = ""


class Result(NamedTuple):
    """The accuracy of a model on a split, from 0 to 1."""

    model: str
    accuracy: float
    split: str


class Stage:
    """A stage in progress, from `Board.begin`; a context manager that closes it.

    Attributes:
        title: Title.
        steps: Number of steps; None if unknown.
        unit: What is counted: "step", "image", or "MiB".
        done: Steps done, including those of earlier starts.
        planned: Its plan.
        share: Share of the planned stage that it is.
        started: When it began, on the board's clock.
    """

    def __init__(
        self, board: "Board", planned: Planned, title: str, steps: int | None, *, unit: str
    ) -> None:
        self.title, self.steps, self.unit, self.done = title, steps, unit, 0
        self.planned, self.share = planned, 1.0
        self.started = board.clock()
        self._board = board
        self._first: tuple[float, float] | None = None  # Time and steps at the first `advance`.
        self._last = self.started

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def advance(self, done: int) -> None:
        """Sets the number of finished steps; called after every step."""
        self.done, self._last = done, self._board.clock()
        # The first step includes its compilation, so that speed is measured after it.
        self._first = self._first or (self._last, done)
        self._board.on_advance(self)

    def close(self) -> None:
        """Ends the stage; may be called again."""
        self._board.end(self)

    @property
    def complete(self) -> bool:
        """Whether all steps are done; True if their number is unknown."""
        return self.steps is None or self.done >= self.steps

    def rate(self) -> float | None:
        """Returns the steps per second since the first one of this start; None if unknown."""
        if self._first is None:
            return None
        seconds, steps = self._last - self._first[0], self.done - self._first[1]
        enough = seconds > 0 and (seconds >= _EVIDENCE_SECONDS or self.complete)
        return steps / seconds if enough and steps else None

    def seconds_left(self) -> float | None:
        """Returns the seconds that its remaining steps take; None if unknown."""
        rate = self.rate()
        if self.steps is None or not rate:
            return None
        return max((self.steps - self.done) / rate - (self._board.clock() - self._last), 0.0)

    def seconds_per_work(self) -> float | None:
        """Returns the seconds that a unit of the planned work takes; None if unknown."""
        rate = self.rate()
        if not rate or not self.steps or not self.planned.work or not self.share:
            return None
        return self.steps / rate / (self.planned.work * self.share)


class Board:
    """The stages of a run, its results, and the time left.

    One thread changes it; others may read it at any time, because it replaces its tuples.

    Attributes:
        title: Title of the run; "" if it needs none.
        finished: Stages that have ended.
        running: Stages in progress; each began within the one before.
        to_come: Stages to come.
        results: The latest result of each model, the best first.
        started: When the run began.
        on_advance: Called after every step, with its stage.
    """

    def __init__(
        self,
        on_advance: Callable[[Stage], None] = lambda stage: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock, self.on_advance = clock, on_advance
        self.begin_run("")

    def begin_run(self, title: str) -> None:
        """Begins a run; forgets the one before, whose models and images may be others."""
        self.title, self.started = title, self.clock()
        self.finished: tuple[Finished, ...] = ()
        self.running: tuple[Stage, ...] = ()
        self.to_come: tuple[Planned, ...] = ()
        self.results: tuple[Result, ...] = ()
        self._speeds: dict[str, float] = {}  # Seconds per unit of work, by kind.
        self._deadline: float | None = None
        self._current: Planned | None = None
        self._current_share = 0.0  # Of the current planned stage, which part has ended.

    def plan(self, stages: Sequence[str | Planned]) -> None:
        """Replaces the stages to come."""
        self.to_come = tuple(
            Planned(stage) if isinstance(stage, str) else stage for stage in stages
        )

    def begin(
        self,
        title: str,
        steps: int | None,
        *,
        first_step: int = 0,
        unit: str = "step",
        share: float = 1.0,
    ) -> Stage:
        """Begins a stage.

        It is the first stage to come whose title this is, or begins with. Stages before that were
        finished in an earlier start.

        Args:
            title: Title.
            steps: Number of steps; None if unknown.
            first_step: Steps done in earlier starts.
            unit: What is counted.
            share: Share of the planned stage that it is, if that has several parts.
        """
        stage = Stage(self, self._planned(title), title, steps, unit=unit)
        stage.done, stage.share = first_step, share
        self.running = (*self.running, stage)
        return stage

    def end(self, stage: Stage) -> None:
        """Ends a stage, and those that began within it."""
        if stage not in self.running:
            return
        self.running = self.running[: self.running.index(stage)]
        speed = stage.seconds_per_work()
        if speed is not None and stage.planned.kind:
            self._speeds[stage.planned.kind] = speed
        missing = "" if stage.complete else f"{stage.unit} {stage.done} of {stage.steps}"
        seconds, is_planned = self.clock() - stage.started, stage.planned is self._current
        if is_planned:
            self._current_share += stage.share
        if is_planned or missing or seconds >= SHORT_SECONDS:
            self.finished = (*self.finished, Finished(stage.title, seconds, missing))

    def result(self, model: str, accuracy: float, split: str) -> None:
        """Replaces the result of a model."""
        others = [result for result in self.results if result.model != model]
        new = [*others, Result(model, accuracy, split)]
        self.results = tuple(sorted(new, key=lambda result: -result.accuracy))

    def until(self, seconds_left: float | None) -> None:
        """Sets the time at which the run will end; None if it has no such time."""
        self._deadline = None if seconds_left is None else self.clock() + seconds_left

    @property
    def has_deadline(self) -> bool:
        """Whether the time left is that of a plan, and not an estimate."""
        return self._deadline is not None

    def complete(self) -> None:
        """Ends the run: all stages to come were finished in an earlier start."""
        self.finished += tuple(Finished(stage.title, None) for stage in self.to_come)
        self.to_come = ()

    def seconds_left(self) -> float | None:
        """Returns the seconds until the end of the run; None if they cannot be estimated.

        Without a deadline, they are those of the current stage and of all stages to come, if one of
        each of their kinds has been measured. Stages without steps count as nothing.
        """
        if self._deadline is not None:
            return max(self._deadline - self.clock(), 0.0)
        running, to_come = self.running, self.to_come
        if not to_come:
            return None
        parts = [self._work_left(stage, stage.work) for stage in to_come]
        parts += [self._current_left(running[-1])] if running else []
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _planned(self, title: str) -> Planned:
        """Returns the plan of a stage that begins, and makes it the current one."""
        for i, planned in enumerate(self.to_come):
            if _continues(title, planned.title):
                self.finished += tuple(Finished(each.title, None) for each in self.to_come[:i])
                self.to_come = self.to_come[i + 1 :]
                self._current, self._current_share = planned, 0.0
                return planned
        if self._current and _continues(title, self._current.title):
            return self._current
        return Planned(title)

    def _current_left(self, stage: Stage) -> float | None:
        """Returns the seconds left of the stage in progress, with the parts that follow it."""
        left = stage.seconds_left()
        if stage.steps is None:
            return 0.0
        if left is None:  # Before its first steps, it is as fast as the last one of its kind.
            remaining = 1 - stage.done / stage.steps if stage.steps else 0.0
            left = self._work_left(stage.planned, stage.planned.work * stage.share * remaining)
        following = 1 - self._current_share - stage.share
        if stage.planned is not self._current or following < 1e-6 or left is None:
            return left
        further = self._work_left(stage.planned, stage.planned.work * following)
        return None if further is None else left + further

    def _work_left(self, planned: Planned, work: float) -> float | None:
        """Returns the seconds that work of a planned stage takes, at the last known speed."""
        speed = self._speeds.get(planned.kind)
        for stage in self.running:
            if stage.planned.kind == planned.kind:
                speed = stage.seconds_per_work() or speed
        return speed * work if speed is not None and planned.kind and planned.work else None


def _continues(title: str, planned: str) -> bool:
    return title == planned or title.startswith((f"{planned}, ", f"{planned} "))
