"""The training loop: step, log, evaluate, checkpoint. Its effects are injected."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from remem_jax.records import Batch, Metrics
from remem_jax.train import finite

S = TypeVar("S")


class Effects(NamedTuple):
    """Callbacks of the loop.

    Attributes:
        log: Writes the metrics of a step.
        save: Saves the state after a step, so that the run can resume there.
        faulty: Called with the indices of the models whose step was not finite, and the state,
            whenever metrics are fetched. If these are all models, training has ended.
        milestone: Evaluates and keeps the state after a milestone.
        progress: Called after every step, with the number of steps done.
        stopping: Called after every step, with the number of steps done; returns whether to save
            the state and stop.
        replanned: Called after metrics were logged, with the number of steps done, their number in
            all, and the seconds of a step; returns the new number in all, which is more than those
            done unless these were all.
    """

    log: Callable[[int, Metrics], None]
    save: Callable[[int, Any], None]
    faulty: Callable[[Sequence[int], Any], None]
    milestone: Callable[[int, Any], None]
    progress: Callable[[int], None]
    stopping: Callable[[int], bool]
    replanned: Callable[[int, int, float], int] = lambda done, steps, step_seconds: steps


class Schedule(NamedTuple):
    """When the loop logs, evaluates and saves, in steps done.

    Attributes:
        steps: Number of steps.
        milestones: Steps after which `Effects.milestone` is called.
        log_every: Interval at which metrics are fetched and written, in steps.
        save_every: Interval at which the state is saved, in steps; also at the end.
    """

    steps: int
    milestones: tuple[int, ...]
    log_every: int
    save_every: int


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved; the message is for the user."""


class NonFiniteLossError(FloatingPointError):
    """The loss, or something computed from it, is not finite; the message is for the user.

    Attributes:
        part: The first part that was not finite: "checkpoint" (the parameters that training
            starts from), or one of `finite.PARTS`.
        step: Number of the first step with a part that was not finite.
        seconds: Training time until then.
    """

    def __init__(
        self, message: str, part: str = "loss", *, step: int = 0, seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.part, self.step, self.seconds = part, step, seconds

    @property
    def of_rate(self) -> bool:
        """Whether a lower learning rate may help, because the inputs of the step were finite."""
        return self.part in _OF_RATE


_OF_RATE = {
    "loss": "the loss",
    "gradient": "the gradient",
    "update": "the parameters, or the optimiser's state, after their update",
}
_NAMES = {
    "data": "the batch (its images, or the shares of its labels)",
    "checkpoint": "the parameters that training starts from",
    "parameters": "the parameters that were saved",
    "teacher": "the teacher's outputs",
    **_OF_RATE,
}


def fit(
    state: S,
    step: Callable[[S, Batch], tuple[S, Metrics]],
    batches: Iterator[Batch],
    *,
    first_step: int,
    schedule: Schedule,
    effects: Effects,
) -> S:
    """Trains from `first_step` to the end of the schedule.

    Args:
        state: State after `first_step` steps; donated to the step.
        step: A jitted step. Its metrics contain "loss", a scalar or one value per student, and may
            contain "fault", the result of `finite.fault` for each.
        batches: Batches from `first_step` on.
        first_step: Number of steps already done.
        schedule: When to log, save and evaluate.
        effects: The callbacks.

    Returns:
        The last state.

    The log gets the step's metrics, "step_seconds" (the mean over the steps since the last log,
    without evaluation and saving) and "input_share" (the share of this time that was spent waiting
    for batches).

    Raises:
        NonFiniteLossError: If no model is finite, when metrics are next fetched: for the log, and
            before a state is evaluated or saved.
        StoppedError: If `effects.stopping` returned True; the state was saved.
    """
    timer, saved, steps = _Timer(), first_step, schedule.steps
    unread: list[tuple[int, Metrics]] = []
    done = first_step
    while done < steps:
        done += 1
        timer.start()
        batch = next(batches)
        timer.batch_arrived()
        state, metrics = step(state, batch)
        unread.append((done, metrics))
        last = done == steps
        logs = last or done % schedule.log_every == 0
        saves = last or done % schedule.save_every == 0
        evaluates = done in schedule.milestones or (last and steps != schedule.steps)
        stops = effects.stopping(done) and not last
        saves |= stops
        if logs or saves or evaluates:
            # Fetching metrics waits for the step; otherwise the host runs ahead of the device.
            fetched = jax.device_get(metrics)
            timer.stop()
            faults = _faults(fetched)
            if faults.all():
                raise _error(unread, saved, first_step)
            unread.clear()
            if logs:
                times = timer.read()
                effects.log(done, {**_logged(fetched), **times})
                steps = effects.replanned(done, steps, times["step_seconds"])
            effects.faulty(np.flatnonzero(faults).tolist(), state)
        else:
            timer.stop()
        if evaluates:
            effects.milestone(done, state)
        if saves:
            effects.save(done, state)
            saved = done
        effects.progress(done)
        if stops:
            raise StoppedError(f"stopped after step {done} of {steps}, which is saved")
    return state


class _Timer:
    """Measures the time of steps since the last reading."""

    def __init__(self) -> None:
        self._steps, self._seconds, self._waited, self._began = 0, 0.0, 0.0, 0.0

    def start(self) -> None:
        """Marks the start of a step, which first waits for its batch."""
        self._began = time.monotonic()

    def batch_arrived(self) -> None:
        """Marks the arrival of the step's batch."""
        self._waited += time.monotonic() - self._began

    def stop(self) -> None:
        """Marks the end of the step on the host; on the device too if its metrics were fetched."""
        self._steps += 1
        self._seconds += time.monotonic() - self._began

    def read(self) -> Metrics:
        """Returns means over the steps since the last call."""
        steps, seconds, waited = self._steps, self._seconds, self._waited
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return {"step_seconds": seconds / steps, "input_share": waited / max(seconds, 1e-9)}


def _logged(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if name != "fault"}


def _faults(metrics: Metrics) -> np.ndarray:
    """Returns, for each model, the number of the first `finite.PARTS` that is not finite, or 0."""
    fault, loss = np.atleast_1d(metrics.get("fault", 0)), np.atleast_1d(metrics["loss"])
    return np.where((fault > 0) | np.isfinite(loss), fault, 1 + finite.PARTS.index("loss"))


def _error(
    unread: Sequence[tuple[int, Metrics]], saved: int, first_step: int
) -> NonFiniteLossError:
    """Returns the error to raise when no model is finite.

    It describes the last model that failed, which ended the training; others may have failed long
    before.

    Args:
        unread: Steps and their metrics since the last check that found a finite model.
        saved: The last step that is saved, which is safe.
        first_step: Number of steps done before.
    """
    fetched = jax.device_get([metrics for _, metrics in unread])
    faults = np.stack([_faults(metrics) for metrics in fetched])
    first_rows = np.argmax(faults > 0, axis=0)  # For each model, an index into `unread`.
    row = int(first_rows.max())
    inherited = 1 + finite.PARTS.index("parameters")
    fault = min(faults[row, first_rows == row], key=lambda fault: (fault == inherited, fault))
    step, part = unread[row][0], finite.PARTS[fault - 1]
    if part == "parameters" and first_step == 0:
        part = "checkpoint"
    loss = np.asarray(fetched[-1]["loss"]).tolist()
    return NonFiniteLossError(
        f"the loss is {loss} at step {unread[-1][0]}; not finite first: {_NAMES[part]}, at step "
        f"{step}; the last step that is safe is {saved}",
        part,
        step=step,
    )
