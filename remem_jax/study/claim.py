"""A trial that a worker has claimed: sends its heartbeats and ends it."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from remem_jax.study import storages

End = Callable[[int, TrialState, Mapping[str, Any], float | None], bool]


class Claim:
    """A trial that this worker runs in `with claim.working():`, and then ends.

    `done`, `failed` and `give_back` return False if the claim was lost.

    Attributes:
        key: Key of the configuration.
        number: Number of the trial, as the dashboard shows it.
        lost: Whether another worker has taken over the configuration; the result is then dropped.
    """

    def __init__(
        self,
        trial: FrozenTrial,
        trial_id: int,
        storage: BaseStorage,
        *,
        heartbeat_seconds: float,
        end: End,
    ) -> None:
        """Stores the claim's trial and the connections to its queue.

        Args:
            trial: The trial.
            trial_id: Its id in the storage.
            storage: Storage of the study.
            heartbeat_seconds: Seconds between two heartbeats.
            end: Ends a trial, given by its id, with a state, attributes and an objective; returns
                False if it had ended before.
        """
        self.key, self.number, self.lost = str(trial.user_attrs["key"]), trial.number, False
        self._id, self._storage, self._end_trial = trial_id, storage, end
        self._heartbeat_seconds, self._ended = heartbeat_seconds, threading.Event()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Sends heartbeats until the block or the trial ends; call it once for each claim."""
        heart = threading.Thread(target=self._beat, name=f"heart {self.number}", daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._ended.set()
            heart.join(self._heartbeat_seconds)  # With a limit: the storage may hang.

    def done(self, value: float, record: Any) -> bool:
        """Ends the trial with its objective, a finite number, and its record, a JSON value."""
        if not math.isfinite(value):
            raise ValueError(f"The objective of a trial must be finite; got {value}.")
        return self._end(TrialState.COMPLETE, {"record": record}, value)

    def failed(self, reason: str) -> bool:
        """Fails the configuration for good, as after a NaN loss."""
        return self._end(TrialState.FAIL, {"failed": reason})

    def give_back(self, reason: str, *, failed_attempt: bool = False) -> bool:
        """Returns the configuration to the queue, for any worker.

        Args:
            reason: Shown in the dashboard.
            failed_attempt: Whether this counts as one of the `attempts` of the configuration: an
                error does, a request to stop does not.
        """
        return self._end(TrialState.FAIL, {"reason": reason, "strike": failed_attempt})

    def _end(
        self, state: TrialState, attributes: Mapping[str, Any], value: float | None = None
    ) -> bool:
        self._ended.set()
        is_ours = self._end_trial(self._id, state, attributes, value)
        if not is_ours:
            self._lose()
        return is_ours

    def _beat(self) -> None:
        beats, warned = 0, False
        while not self._ended.wait(self._heartbeat_seconds):
            beats += 1
            try:
                self._storage.set_trial_user_attr(self._id, "beats", beats)
                warned = False
            except UpdateFinishedTrialError:
                if not self._ended.is_set():
                    self._lose()
                break
            except storages.PASSING as error:  # The work continues.
                if not warned:
                    logging.warning(
                        "Trial %d has no heartbeat: %s.", self.number, storages.cause(error)
                    )
                warned = True
        self._storage.remove_session()  # Each thread has its own session.

    def _lose(self) -> None:
        if not self.lost:
            logging.warning("Trial %d was lost: another worker has taken it over.", self.number)
        self.lost = True
