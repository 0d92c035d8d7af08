"""The only loop: step, log, evaluate, checkpoint. Its effects are injected."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from remem_jax.records import Batch, Metrics

S = TypeVar("S")


class Effects(NamedTuple):
    """What the loop does besides stepping.

    Attributes:
        log: Writes the metrics of a step.
        save: Makes the state after a step safe, so that the run can go on from there.
        milestone: Looks at the state after a milestone: evaluates it, keeps it.
        progress: Called with the number of steps done, after every step.
        stopping: Called with the number of steps done, after every step: whether the run is to
            stop there, its state made safe.
    """

    log: Callable[[int, Metrics], None]
    save: Callable[[int, Any], None]
    milestone: Callable[[int, Any], None]
    progress: Callable[[int], None]
    stopping: Callable[[int], bool]


class Schedule(NamedTuple):
    """When the loop does what, in steps done.

    Attributes:
        steps: When it ends.
        milestones: After which steps `Effects.milestone` is called.
        log_every: Metrics are fetched and written every so many steps.
        save_every: The state is made safe every so many steps, and at the end.
    """

    steps: int
    milestones: tuple[int, ...]
    log_every: int
    save_every: int


class StoppedError(Exception):
    """The run was asked to stop, and is safe; the message is for the user."""


class NonFiniteLossError(FloatingPointError):
    """The loss is no number any more, or infinite; the message is for the user."""


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
        step: A jitted step. Its metrics hold "loss": a scalar, or one value per student.
        batches: Batches from `first_step` on.
        first_step: Steps already done.
        schedule: When to log, save and evaluate.
        effects: How to.

    Returns:
        The last state.

    What is logged has beside the step's own metrics "step_seconds", the mean over the steps since
    the last log without what looking and saving took, and "input_share", the share of them that
    was spent waiting for batches.

    Raises:
        NonFiniteLossError: If no loss is finite any more, when it is next logged, and before a
            state is looked at or saved.
        StoppedError: If the effects say so; the state was saved.
    """
    watch = _Watch()
    safe = first_step
    for done in range(first_step + 1, schedule.steps + 1):
        watch.begins()
        batch = next(batches)
        watch.has_batch()
        state, metrics = step(state, batch)
        last = done == schedule.steps
        logs = last or done % schedule.log_every == 0
        saves = last or done % schedule.save_every == 0
        looks = done in schedule.milestones
        stops = effects.stopping(done) and not last
        saves |= stops
        if logs or saves or looks:
            # Fetching waits for the step; in between the host runs ahead of the device.
            fetched = jax.device_get(metrics)
            watch.ends()
            _require_finite(done, fetched, safe)
            if logs:
                effects.log(done, {**fetched, **watch.read()})
        else:
            watch.ends()
        if looks:
            effects.milestone(done, state)
        if saves:
            effects.save(done, state)
            safe = done
        effects.progress(done)
        if stops:
            raise StoppedError(f"stopped after step {done} of {schedule.steps}, which is saved")
    return state


class _Watch:
    """What steps take since it was last read."""

    def __init__(self) -> None:
        self._steps, self._seconds, self._waited, self._began = 0, 0.0, 0.0, 0.0

    def begins(self) -> None:
        """A step begins, with waiting for its batch."""
        self._began = time.monotonic()

    def has_batch(self) -> None:
        """The batch of the step is there."""
        self._waited += time.monotonic() - self._began

    def ends(self) -> None:
        """The host is done with the step; the device too, if its metrics were fetched."""
        self._steps += 1
        self._seconds += time.monotonic() - self._began

    def read(self) -> Metrics:
        """Means over the steps since the last reading."""
        steps, seconds, waited = self._steps, self._seconds, self._waited
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return {"step_seconds": seconds / steps, "input_share": waited / max(seconds, 1e-9)}


def _require_finite(step: int, metrics: Metrics, safe: int) -> None:
    if not np.isfinite(metrics["loss"]).any():
        raise NonFiniteLossError(
            f"the loss is {np.asarray(metrics['loss']).tolist()} at step {step}; the last step "
            f"that is safe is {safe}"
        )
