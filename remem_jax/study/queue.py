"""The trials of a study, kept in an Optuna storage and shared by workers on any machines.

A trial is one attempt at a point, by one worker. Nothing is done twice, and nothing is lost:

- A trial of a point is taken only when all before it have failed or were pruned, which no trial
  comes back from, and the storage lets one worker take it. So at most one runs, or is done.
- A worker's trial has a heart that beats. When the worker has died, any other fails the trial and
  adds the point's next. One that was only slow finds its trial failed: what it brings is not used.
- Workers that add a point at the same time add a trial each: all but the first are pruned.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import optuna
from absl import logging
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from remem_jax import checks
from remem_jax.storage import process
from remem_jax.study import storages

# What is noted in a trial, beside what its point has. Only its worker writes `record` and
# `failed`: another that fails the trial at the same time does not undo them.
_NOTES = {"worker", "beats", "record", "failed", "reason", "strike"}

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Point(NamedTuple):
    """A trial that is wanted.

    Attributes:
        key: Fingerprint of its settings; two points with one key are one.
        params: Finite numbers by name; the dashboard plots them.
        attributes: What else the dashboard shows; JSON values.
    """

    key: str
    params: Mapping[str, float]
    attributes: Mapping[str, Any]


def _patient(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Makes a method of a queue try again while the storage is away, for as long as a lease."""

    @functools.wraps(method)
    def insisting(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        queue: Any = args[0]
        end, told = time.monotonic() + queue._grace_seconds, False
        while True:
            try:
                return method(*args, **kwargs)
            except storages.PASSING as error:
                if time.monotonic() > end:
                    raise storages.unusable(queue._shown, error) from None
                if not told:
                    logging.warning("%s: %s; trying again.", queue._shown, storages.cause(error))
                told = True
            time.sleep(queue._heartbeat_seconds)

    return insisting


class Claim:
    """A trial that this worker has taken: it works in `with claim.working():`, and ends it.

    What ends it returns whether that counts. If not, another worker took the point up meanwhile.

    Attributes:
        key: Of the point.
        number: Of the trial, as the dashboard shows it.
        lost: Whether the trial was found to be no more this worker's: its work is in vain.
    """

    def __init__(self, queue: "Queue", trial: FrozenTrial, trial_id: int) -> None:
        self.key, self.number, self.lost = str(trial.user_attrs["key"]), trial.number, False
        self._queue, self._id, self._over = queue, trial_id, threading.Event()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Beats the heart while the block runs, or until the trial is ended; once for a claim."""
        heart = threading.Thread(target=self._beat, name=f"heart {self.number}", daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._over.set()
            heart.join(self._queue._heartbeat_seconds)  # No longer: the storage may hang.

    def done(self, value: float, record: Any) -> bool:
        """Ends the trial with its objective, which is finite, and its record, which is JSON."""
        if not math.isfinite(value):
            raise ValueError(f"The value of a trial must be finite, got {value}: it has failed.")
        return self._end(TrialState.COMPLETE, {"record": record}, value)

    def failed(self, reason: str) -> bool:
        """Fails the point for good, as when its loss is no number any more."""
        return self._end(TrialState.FAIL, {"failed": reason})

    def give_back(self, reason: str, *, strike: bool = False) -> bool:
        """Leaves the point to any worker, at once.

        Args:
            reason: Shown in the dashboard.
            strike: Whether it is one of the point's `attempts`; an error is, a request to stop
                is not.
        """
        return self._end(TrialState.FAIL, {"reason": reason, "strike": strike})

    def _end(self, state: TrialState, notes: Mapping[str, Any], value: float | None = None) -> bool:
        self._over.set()
        counts = self._queue._end(self._id, state, notes, value)
        if not counts:
            self._lose()
        return counts

    def _beat(self) -> None:
        beats, told = 0, False
        while not self._over.wait(self._queue._heartbeat_seconds):
            beats += 1
            try:
                self._queue._storage.set_trial_user_attr(self._id, "beats", beats)
                told = False
            except UpdateFinishedTrialError:
                if not self._over.is_set():
                    self._lose()
                break
            except storages.PASSING as error:  # The work goes on.
                if not told:
                    logging.warning(
                        "Trial %d has no heartbeat: %s.", self.number, storages.cause(error)
                    )
                told = True
        self._queue._storage.remove_session()  # Each thread has one.

    def _lose(self) -> None:
        if not self.lost:
            logging.warning("Trial %d was lost: its point is another worker's.", self.number)
        self.lost = True


class Queue:
    """The trials of a study, from `open_queue`; used in a `with`, by one thread.

    While the storage cannot be used, each method tries again for `grace_seconds`, then raises
    `SettingError`.
    """

    def __init__(
        self,
        opened: storages.Opened,
        name: str,
        *,
        heartbeat_seconds: float,
        grace_seconds: float,
        attempts: int,
    ) -> None:
        storage, self._shown = opened
        self._storage, self._attempts = storage, attempts
        self._heartbeat_seconds, self._grace_seconds = heartbeat_seconds, grace_seconds
        # Reads each trial that has ended, and its record, only once.
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        self._study_id = storage.get_study_id_from_name(name)
        self._looked = -math.inf  # When, by this machine's clock.
        self._heard: dict[int, tuple[int | None, float]] = {}  # Beats of a trial, and since when.

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *error: object) -> None:
        self._storage.remove_session()
        if isinstance(self._storage, optuna.storages.RDBStorage):
            self._storage.engine.dispose()

    def want(self, points: Sequence[Point]) -> None:
        """Adds a trial of each point that has none."""
        self._add({point.key: _trial(point) for point in points})

    @_patient
    def claim(self, keys: Collection[str]) -> Claim | None:
        """Takes a trial of one of these points, first those that no trial has ended badly.

        The points of dead workers are free again. A worker on this machine is known to be dead at
        once; another is when its heart has not beaten for `grace_seconds`, as seen from here.
        While nothing waits, call this more than twice in that time. What happens between two
        calls that are further apart is held against no one: the storage may have been away.

        Returns:
            None if nothing waits; others may still run.
        """
        self._renew(keys)
        groups = self._groups(keys)
        for group in groups.values():
            waiting = _in(group, TrialState.WAITING)
            for trial in waiting[self._state(group) == "waiting" :]:
                self._prune(trial)
        for group in sorted(groups.values(), key=lambda group: len(_strikes(group))):
            waiting = _in(group, TrialState.WAITING)
            if waiting and self._state(group) == "waiting":
                trial_id = self._take(waiting[0])
                if trial_id is not None:
                    return Claim(self, waiting[0], trial_id)
        return None

    @_patient
    def states(self, keys: Collection[str]) -> dict[str, str]:
        """Of each point that has a trial: "waiting", "running", "done" or "failed" for good."""
        return {key: self._state(group) for key, group in self._groups(keys).items()}

    @_patient
    def values(self, keys: Collection[str]) -> dict[str, float]:
        """The objective of each point that is done."""
        return {key: float(trial.values[0]) for key, trial in self._done(keys).items()}

    @_patient
    def records(self, keys: Collection[str]) -> dict[str, Any]:
        """The record of each point that is done."""
        return {key: trial.user_attrs["record"] for key, trial in self._done(keys).items()}

    @_patient
    def failures(self, keys: Collection[str]) -> dict[str, str]:
        """Why a point has failed, of each that has for good."""
        groups = self._groups(keys).items()
        failed = {key: group for key, group in groups if self._state(group) == "failed"}
        return {key: str(self._failure(group)) for key, group in failed.items()}

    @_patient
    def _end(
        self, trial_id: int, state: TrialState, notes: Mapping[str, Any], value: float | None = None
    ) -> bool:
        """Ends a trial that runs, for `Claim`; False if it had ended before."""
        try:
            for name, note in notes.items():
                self._storage.set_trial_user_attr(trial_id, name, note)
            values = None if value is None else [value]
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            if state != TrialState.COMPLETE:
                return False
            # Only its worker completes a trial: it may have, without hearing the answer.
            return self._storage.get_trial(trial_id).state == TrialState.COMPLETE
        return True

    def _groups(self, keys: Collection[str]) -> dict[str, list[FrozenTrial]]:
        """The trials of each point, in the order of their numbers."""
        keys, groups = frozenset(keys), {}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("key") in keys:
                groups.setdefault(trial.user_attrs["key"], []).append(trial)
        return groups

    def _done(self, keys: Collection[str]) -> dict[str, FrozenTrial]:
        groups = self._groups(keys).items()
        return {key: trial for key, group in groups for trial in _in(group, TrialState.COMPLETE)}

    def _state(self, group: Sequence[FrozenTrial]) -> str:
        if _in(group, TrialState.COMPLETE):
            return "done"
        if _in(group, TrialState.RUNNING):
            return "running"
        return "waiting" if self._failure(group) is None else "failed"

    def _failure(self, group: Sequence[FrozenTrial]) -> str | None:
        for trial in _in(group, TrialState.FAIL):
            if "failed" in trial.user_attrs:
                return trial.user_attrs["failed"]
        strikes = _strikes(group)
        if len(strikes) < self._attempts:
            return None
        return f"given up after {len(strikes)} attempts: {'; '.join(strikes)}"

    @_patient
    def _add(self, wanted: Mapping[str, FrozenTrial]) -> None:
        known, expected = self._groups(wanted), None
        for left, (key, trial) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
            if key in known:
                continue
            began = time.monotonic()
            trial_id = self._storage.create_new_trial(self._study_id, trial)
            number = self._storage.get_trial_number_from_id(trial_id)
            if expected in (None, number):
                expected = number + 1
            else:  # Another worker adds the same points. Without a pause, both would add each.
                time.sleep(random.random() * left * (time.monotonic() - began))
                known, expected = self._groups(wanted), None

    def _renew(self, keys: Collection[str]) -> None:
        """Fails the trials of dead workers, and adds a trial where the last one has failed."""
        began = time.monotonic()
        trials, now = [*itertools.chain(*self._groups(keys).values())], time.monotonic()
        if now - self._looked > self._grace_seconds / 2:
            self._heard.clear()
        self._looked = now
        for trial in _in(trials, TrialState.RUNNING):
            beats, worker = trial.user_attrs.get("beats"), trial.user_attrs.get("worker")
            before, since = self._heard.get(trial.number, (beats, now))
            since = since if beats == before else now
            self._heard[trial.number] = beats, since
            if began - since >= self._grace_seconds or (worker and process.has_died(worker)):
                self._bury(trial)
        for group in self._groups(keys).values():
            if self._state(group) == "waiting" and not _in(group, TrialState.WAITING):
                self._storage.create_new_trial(self._study_id, _next(group[-1]))

    def _bury(self, trial: FrozenTrial) -> None:
        worker = trial.user_attrs.get("worker", {})
        reason = f"lost with process {worker.get('pid')} on {worker.get('host')}"
        # There are beats before the work begins: without, it cannot have ended its worker.
        notes = {"reason": reason, "strike": "beats" in trial.user_attrs}
        if self._end(self._id(trial), TrialState.FAIL, notes):
            logging.warning("Trial %d was %s.", trial.number, reason)

    def _prune(self, trial: FrozenTrial) -> None:
        trial_id = self._take(trial)  # Or another could have taken it by now, and be at work.
        if trial_id is not None:
            self._end(trial_id, TrialState.PRUNED, {"reason": "duplicate"})

    def _take(self, trial: FrozenTrial) -> int | None:
        """The id of a trial that was waiting and is now this worker's; None if it is another's."""
        trial_id = self._id(trial)
        try:
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
            self._storage.set_trial_user_attr(trial_id, "worker", process.this())
            self._storage.set_trial_user_attr(trial_id, "beats", 0)
        except UpdateFinishedTrialError:
            return None
        return trial_id

    def _id(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


def open_queue(
    storage: str,
    name: str,
    *,
    folder: pathlib.Path,
    heartbeat_seconds: float,
    grace_seconds: float,
    attempts: int,
) -> Queue:
    """Opens the queue of a study, which is made if it is not there.

    Args:
        storage: "sqlite" or "journal", for study.db or study.journal in the folder; one of them
            with a path, as "sqlite:/path"; or a database's URL, as
            "postgresql://user:password@host/name". SQLite is not safe in a folder that machines
            share over a network; a journal is, and PostgreSQL serves more workers.
        name: Of the study in the storage.
        folder: Made if it is not there.
        heartbeat_seconds: Between the beats of a worker's heart.
        grace_seconds: Without a beat, after which a worker is held to be dead.
        attempts: Trials of a point that end their workers before it has failed for good.

    Raises:
        SettingError: If the storage cannot be used.
    """
    checks.above("config.heartbeat_seconds", heartbeat_seconds, 0)
    checks.at_least("config.grace_seconds", grace_seconds, 3 * heartbeat_seconds)
    checks.at_least("config.attempts", attempts, 1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storages.open_storage(storage, folder)
    try:
        return Queue(
            opened,
            name,
            heartbeat_seconds=heartbeat_seconds,
            grace_seconds=grace_seconds,
            attempts=attempts,
        )
    except (*storages.PASSING, ValueError) as error:
        raise storages.unusable(opened.shown, error) from None


def _trial(point: Point) -> FrozenTrial:
    numbers = {name: float(number) for name, number in point.params.items()}
    wrong = {name: number for name, number in numbers.items() if not math.isfinite(number)}
    taken = sorted(point.attributes.keys() & (_NOTES | {"key"}))
    if wrong or taken:
        raise ValueError(f"A point needs finite params and other attributes: {wrong} {taken}.")
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=numbers,
        # The dashboard compares trials whose ranges are the same, as most of these are.
        distributions={k: FloatDistribution(min(v, 0), max(v, 1)) for k, v in numbers.items()},
        user_attrs={**point.attributes, "key": point.key},
    )


def _next(trial: FrozenTrial) -> FrozenTrial:
    """A trial of the same point, which waits."""
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={k: v for k, v in trial.user_attrs.items() if k not in _NOTES},
    )


def _in(group: Sequence[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in group if trial.state == state]


def _strikes(group: Sequence[FrozenTrial]) -> list[str]:
    """The reasons of the attempts that count."""
    failed = [trial.user_attrs for trial in _in(group, TrialState.FAIL)]
    return [notes["reason"] for notes in failed if notes.get("strike")]
