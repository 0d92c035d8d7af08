"""The only loop: step, log, evaluate, checkpoint. Its effects are injected."""

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
    """

    log: Callable[[int, Metrics], None]
    save: Callable[[int, Any], None]
    milestone: Callable[[int, Any], None]
    progress: Callable[[int], None]


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

    Raises:
        NonFiniteLossError: If no loss is finite any more, when it is next logged, and before a
            state is looked at or saved.
    """
    for done in range(first_step + 1, schedule.steps + 1):
        state, metrics = step(state, next(batches))
        last = done == schedule.steps
        logs = last or done % schedule.log_every == 0
        saves = last or done % schedule.save_every == 0
        looks = done in schedule.milestones
        if logs or saves or looks:
            # Fetching waits for the step; in between the host runs ahead of the device.
            fetched = jax.device_get(metrics)
            _require_finite(done, fetched)
            if logs:
                effects.log(done, fetched)
        if looks:
            effects.milestone(done, state)
        if saves:
            effects.save(done, state)
        effects.progress(done)
    return state


def _require_finite(step: int, metrics: Metrics) -> None:
    if not np.isfinite(metrics["loss"]).any():
        raise NonFiniteLossError(
            f"The loss is {np.asarray(metrics['loss']).tolist()} at step {step}: lower the "
            "learning rate, or rho; what was saved before is kept."
        )
