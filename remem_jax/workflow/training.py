"""Trains one stage of a run to its end, from its newest checkpoint if there is one."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax import mesh, signals
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, Metrics
from remem_jax.storage import checkpoints, logs
from remem_jax.train import compiling, finite, loop, profiling
from remem_jax.train.speed import Speed
from remem_jax.workflow import advice
from remem_jax.workflow.context import Run

CHECKPOINTS = "checkpoints"


class Job(NamedTuple):
    """What `train` does.

    Attributes:
        shapes: Of the state, as it lies on the devices; its structure is that of the checkpoints.
        first: Makes the state at step 0; not called where a checkpoint is there.
        make_step: Makes the (jitted) step, given the number of steps that were done before.
        operations: Counts the floating-point operations of a step.
        batch_size: Examples in a batch.
        steps: Steps in all.
        milestones: After which steps `milestone` is called.
        milestone: Looks at the state; may be called again for a step after a kill.
        stage: Whose batches it takes.
        lost: Numbers of the models, where several are trained at once, whose state is not finite
            any more, which no step mends. `train` adds them when it sees them, before `milestone`
            is called.
    """

    shapes: Any
    first: Callable[[], Any]
    make_step: Callable[[int], Callable[[Any, Batch], tuple[Any, Metrics]]]
    operations: Callable[[Any, Batch], float]
    batch_size: int
    steps: int
    milestones: tuple[int, ...]
    milestone: Callable[[int, Any], None]
    stage: Stage
    lost: set[int]


def train(run: Run, part: str, job: Job) -> tuple[Any, float]:
    """Trains one part of a run to its end, from its newest checkpoint if there is one.

    Args:
        run: The run.
        part: Name of the part: its folder below the run's, and its name in the log.
        job: What is trained, and how.

    Returns:
        The last state, and the seconds that training took, over all interruptions.

    Raises:
        NonFiniteLossError: If no model is finite any more; it has the seconds too.
    """
    config = run.config
    folder = run.workdir / part / CHECKPOINTS
    with checkpoints.Checkpoints(folder, keep=config.keep_checkpoints) as saved:
        first, done, seconds = _begun(saved, job)
        started = time.monotonic() - seconds
        progress = logs.Progress(part, first_step=done, steps=job.steps)
        trace = profiling.Trace(run.workdir / "profile" / part, first_step=done)

        def after(at: int) -> None:
            step_ended()
            progress(at)
            if config.profile and mesh.is_writer():
                trace(at)

        def stopping(at: int) -> bool:
            # Several processes have to agree, which is not for every step.
            if jax.process_count() > 1 and at % config.log_every:
                return False
            return mesh.any_process(run.stopping())

        speed = Speed(job.operations, run.mesh, config.compute_dtype)

        def faulty(numbers: Sequence[int], states: Any) -> None:
            known = len(job.lost)
            job.lost.update(i for i in numbers if i not in job.lost and not _is_finite(states[i]))
            if len(job.lost) > known:
                logging.warning("%s: models %s are not finite any more.", part, sorted(job.lost))
                speed.count_again()

        effects = loop.Effects(
            log=lambda at, metrics: run.log.write(part, at, {**metrics, **speed.of(metrics)}),
            save=lambda at, state: saved.save(
                at, state, note={"seconds": time.monotonic() - started, "lost": sorted(job.lost)}
            ),
            faulty=faulty,
            milestone=job.milestone,
            progress=after,
            stopping=stopping,
        )
        with (
            contextlib.closing(run.loader.train(job.batch_size, done, stage=job.stage)) as batches,
            advice.given(part),
            advice.of_memory(part),
            _timed(started),
            signals.steps() as step_ended,
        ):
            last = loop.fit(
                first,
                speed.counting(job.make_step(done)),
                batches,
                first_step=done,
                schedule=loop.Schedule(
                    job.steps, job.milestones, config.log_every, config.save_every
                ),
                effects=effects,
            )
        trace.close()
        progress.close()
        if mesh.any_process(signals.stop_requested()):
            raise loop.StoppedError(
                f"stopped after step {job.steps} of {job.steps}, which is saved"
            )
        logging.info("%s: %s", part, _compiled(run.compiled.read()))
        return last, time.monotonic() - started


def _begun(saved: checkpoints.Checkpoints, job: Job) -> tuple[Any, int, float]:
    """The state that training begins with, its step, and the seconds that went into it.

    Where there is a checkpoint, the state at step 0 is never made: the devices hold one state.
    """
    done = saved.newest() or 0
    if not done:
        return job.first(), 0, 0.0
    state, note = saved.restore(done, job.shapes)
    job.lost.update(note.get("lost", ()))  # Earlier versions have stepped them on.
    return state, done, note["seconds"]


@contextlib.contextmanager
def _timed(started: float) -> Iterator[None]:
    """Adds the seconds since `started` to an error of a loss that is not finite."""
    try:
        yield
    except loop.NonFiniteLossError as error:
        error.seconds = time.monotonic() - started
        raise


@jax.jit
def _finite(state: Any) -> jax.Array:
    return finite.is_finite(state)


def _is_finite(state: Any) -> bool:
    return bool(jax.device_get(_finite(state)))


def _compiled(found: compiling.Compiled) -> str:
    return (
        f"compiled {found.made} functions and found {found.found} compiled before, in "
        f"{found.seconds:.1f} s"
    )


def log_validation(run: Run, part: str, at: int, value: float | list[float]) -> None:
    """Writes how a model, or every student, does on validation, and tells the user."""
    run.log.write(part, at, {"validation": value})
    shown = ", ".join(f"{100 * one:.2f}" for one in np.atleast_1d(value))
    logging.info("%s: step %d, %s %% on validation", part, at, shown)
