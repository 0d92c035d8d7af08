"""Keeps the trials of a study in an Optuna storage that workers on any machines share.

Optuna's own queue does not fit: its heartbeat works only in databases, `Study.ask` takes any
waiting trial, and `enqueue_trial` adds duplicates when workers race. Here, an Optuna trial is one
attempt at a configuration, by one worker. No work is repeated, and no result is lost:

- A trial is claimed only if all earlier trials of its configuration have failed or were pruned,
  which are final states, and the storage lets one worker claim it. So at most one of them runs or
  is done.
- A worker sends heartbeats. When it has died, any other worker fails its trial and adds the next
  one of the configuration. If it was only slow, it finds its trial failed, and its result is
  dropped.
- Workers that add a configuration at the same time add a trial each; all but the first are pruned.
"""

import functools
import itertools
import math
import pathlib
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import optuna
from absl import logging
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from remem_jax import checks
from remem_jax.storage import process
from remem_jax.study import configurations, storages
from remem_jax.study.claim import Claim
from remem_jax.study.configurations import Configuration

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def _retried(method: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Makes a method of `Queue` retry for `grace_seconds` while the storage cannot be used."""

    @functools.wraps(method)
    def retrying(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        queue: Any = args[0]
        end, warned = time.monotonic() + queue._grace_seconds, False
        while True:
            try:
                return method(*args, **kwargs)
            except storages.PASSING as error:
                if time.monotonic() > end:
                    raise storages.unusable(queue._shown, error) from None
                if not warned:
                    logging.warning("%s: %s; retrying.", queue._shown, storages.cause(error))
                warned = True
            time.sleep(queue._heartbeat_seconds)

    return retrying


class Queue:
    """The trials of a study; opened by `open_queue`, used in a `with` statement by one thread.

    While the storage cannot be used, each method retries for `grace_seconds`, then raises
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
        # Reads each finished trial, with its record, only once.
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        self._study_id = storage.get_study_id_from_name(name)
        self._last_check = -math.inf  # By this machine's clock.
        # By trial: its number of heartbeats, and the time since which that has not changed.
        self._heartbeats: dict[int, tuple[int | None, float]] = {}

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *error: object) -> None:
        self._storage.remove_session()
        if isinstance(self._storage, optuna.storages.RDBStorage):
            self._storage.engine.dispose()

    def add(self, new: Sequence[Configuration]) -> None:
        """Adds a trial of each configuration that has none."""
        self._add(
            {configuration.key: configurations.first_trial(configuration) for configuration in new}
        )

    @_retried
    def claim(self, keys: Collection[str], *, free: Collection[str] | None = None) -> Claim | None:
        """Claims a trial of one of these configurations, those with fewest failed attempts first.

        Configurations of dead workers are claimed again. A worker on this machine is known to be
        dead at once; another, when this process has seen no heartbeat for `grace_seconds`. While
        nothing waits, call this more than twice in that time: the time between two calls that are
        further apart is not counted, because the storage may have been unreachable.

        Args:
            keys: Keys of configurations.
            free: Those of them that may be claimed; None for all.

        Returns:
            None if nothing waits; other workers may still run trials.
        """
        self._fail_dead_workers(keys)
        self._add_retries(keys)
        groups = self._groups(keys)
        for group in groups.values():
            waiting = configurations.in_state(group, TrialState.WAITING)
            for trial in waiting[self._state(group) == "waiting" :]:
                self._prune(trial)
        for group in sorted(
            groups.values(), key=lambda group: len(configurations.failed_attempts(group))
        ):
            waiting = configurations.in_state(group, TrialState.WAITING)
            is_free = free is None or (waiting and waiting[0].user_attrs["key"] in free)
            if waiting and is_free and self._state(group) == "waiting":
                trial_id = self._start(waiting[0])
                if trial_id is not None:
                    return Claim(
                        waiting[0],
                        trial_id,
                        self._storage,
                        heartbeat_seconds=self._heartbeat_seconds,
                        end=self._end,
                    )
        return None

    @_retried
    def states(self, keys: Collection[str]) -> dict[str, str]:
        """Returns the state of each configuration that has a trial; see `configurations.state`."""
        return {key: self._state(group) for key, group in self._groups(keys).items()}

    @_retried
    def values(self, keys: Collection[str]) -> dict[str, float]:
        """Returns the objective of each configuration that is done."""
        return {key: float(trial.values[0]) for key, trial in self._done(keys).items()}

    @_retried
    def records(self, keys: Collection[str] | None = None) -> dict[str, Any]:
        """Returns the record of each configuration that is done; None for `keys` is all."""
        return {key: trial.user_attrs["record"] for key, trial in self._done(keys).items()}

    @_retried
    def failures(self, keys: Collection[str]) -> dict[str, str]:
        """Returns the reason of each configuration that has failed for good."""
        groups = self._groups(keys).items()
        failed = {key: group for key, group in groups if self._state(group) == "failed"}
        return {
            key: str(configurations.failure(group, attempts=self._attempts))
            for key, group in failed.items()
        }

    @_retried
    def unfinished(self) -> set[str]:
        """Returns the keys of all configurations that are waiting or running."""
        groups = self._groups(None).items()
        return {key for key, group in groups if self._state(group) in ("waiting", "running")}

    @_retried
    def numbers(self, keys: Collection[str]) -> dict[str, int]:
        """Returns the number of each configuration: that of its first trial in the dashboard."""
        return {key: group[0].number for key, group in self._groups(keys).items()}

    @_retried
    def running_workers(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """Returns the worker of each configuration that is running.

        Returns:
            By key, "host" and "pid" of its process, "since" (seconds since 1970 by the worker's
            clock; None if an older version started it), and "died", whether the process is known
            to be dead.
        """
        workers = {key: configurations.worker(group) for key, group in self._groups(keys).items()}
        return {
            key: {
                **{name: worker.get(name) for name in ("host", "pid", "since")},
                "died": process.has_died(worker),
            }
            for key, worker in workers.items()
            if worker
        }

    @_retried
    def _end(
        self,
        trial_id: int,
        state: TrialState,
        attributes: Mapping[str, Any],
        value: float | None = None,
    ) -> bool:
        """Ends a running trial; returns False if it had ended before."""
        try:
            for name, attribute in attributes.items():
                self._storage.set_trial_user_attr(trial_id, name, attribute)
            values = None if value is None else [value]
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            if state != TrialState.COMPLETE:
                return False
            # Only this worker completes the trial: the storage may have done so without a reply.
            return self._storage.get_trial(trial_id).state == TrialState.COMPLETE
        return True

    def _groups(self, keys: Collection[str] | None) -> dict[str, list[FrozenTrial]]:
        return configurations.by_key(self._study.get_trials(deepcopy=False), keys)

    def _done(self, keys: Collection[str] | None) -> dict[str, FrozenTrial]:
        return {
            key: trial
            for key, group in self._groups(keys).items()
            for trial in configurations.in_state(group, TrialState.COMPLETE)
        }

    def _state(self, group: Sequence[FrozenTrial]) -> str:
        return configurations.state(group, attempts=self._attempts)

    @_retried
    def _add(self, trials: Mapping[str, FrozenTrial]) -> None:
        existing, expected = self._groups(trials), None
        for remaining, (key, trial) in zip(range(len(trials), 0, -1), trials.items(), strict=True):
            if key in existing:
                continue
            start = time.monotonic()
            trial_id = self._storage.create_new_trial(self._study_id, trial)
            number = self._storage.get_trial_number_from_id(trial_id)
            if expected in (None, number):
                expected = number + 1
            else:  # Another worker adds the same trials. Without a pause, both would add each.
                time.sleep(random.random() * remaining * (time.monotonic() - start))
                existing, expected = self._groups(trials), None

    def _fail_dead_workers(self, keys: Collection[str]) -> None:
        start = time.monotonic()
        trials, now = [*itertools.chain(*self._groups(keys).values())], time.monotonic()
        if now - self._last_check > self._grace_seconds / 2:
            self._heartbeats.clear()
        self._last_check = now
        for trial in configurations.in_state(trials, TrialState.RUNNING):
            beats, worker = trial.user_attrs.get("beats"), trial.user_attrs.get("worker")
            last_beats, since = self._heartbeats.get(trial.number, (beats, now))
            since = since if beats == last_beats else now
            self._heartbeats[trial.number] = beats, since
            if start - since >= self._grace_seconds or (worker and process.has_died(worker)):
                self._fail_lost(trial)

    def _add_retries(self, keys: Collection[str]) -> None:
        """Adds a trial of each configuration whose last attempt failed, but not for good."""
        for group in self._groups(keys).values():
            waiting = configurations.in_state(group, TrialState.WAITING)
            if self._state(group) == "waiting" and not waiting:
                self._storage.create_new_trial(self._study_id, configurations.next_trial(group[0]))

    def _fail_lost(self, trial: FrozenTrial) -> None:
        worker = trial.user_attrs.get("worker", {})
        reason = f"lost with process {worker.get('pid')} on {worker.get('host')}"
        # The work starts after the first heartbeat is set: without it, it cannot be the cause.
        attributes = {"reason": reason, "strike": "beats" in trial.user_attrs}
        if self._end(self._id(trial), TrialState.FAIL, attributes):
            logging.warning("Trial %d was %s.", trial.number, reason)

    def _prune(self, trial: FrozenTrial) -> None:
        trial_id = self._start(trial)  # Without this, another worker could claim and run it.
        if trial_id is not None:
            self._end(trial_id, TrialState.PRUNED, {"reason": "duplicate"})

    def _start(self, trial: FrozenTrial) -> int | None:
        """Sets a waiting trial to running; returns its id, or None if another worker was faster."""
        trial_id = self._id(trial)
        try:
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
            self._storage.set_trial_user_attr(
                trial_id, "worker", {**process.this(), "since": time.time()}
            )
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
    """Opens the queue of a study, and creates it if there is none.

    Args:
        storage: "sqlite" or "journal", for study.db or study.journal in the folder; one of them
            with a path, as "sqlite:/path"; or the URL of a database, as
            "postgresql://user:password@host/name". SQLite is not safe in a folder that machines
            share over a network; a journal is, and PostgreSQL serves more workers.
        name: Name of the study in the storage.
        folder: Folder of the study; created if it does not exist.
        heartbeat_seconds: Seconds between two heartbeats of a worker.
        grace_seconds: Seconds without a heartbeat after which a worker counts as dead.
        attempts: Failed attempts after which a configuration has failed for good.

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
