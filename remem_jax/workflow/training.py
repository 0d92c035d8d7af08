"""Trains one stage of a run, resuming from its newest checkpoint."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax import display, mesh, signals
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, Metrics
from remem_jax.storage import checkpoints
from remem_jax.train import compiling, finite, loop, pace, profiling
from remem_jax.train.speed import Speed
from remem_jax.workflow import advice, stages
from remem_jax.workflow.context import Run

CHECKPOINTS = "checkpoints"
Rate = Callable[[int], float]
Progress = Callable[[int], float]


class Job(NamedTuple):
    """The training of one stage.

    Attributes:
        shapes: Shapes and shardings of the state; checkpoints have the same structure.
        first: Creates the state at step 0; not called if there is a checkpoint.
        make_step: Builds the (jitted) step, given the number of steps done before, the fraction of
            the peak learning rate by step (None if the step has its own schedule), and the fraction
            of the training that is done after a step, by step.
        operations: Counts the floating-point operations of a step.
        batch_size: Global batch size.
        steps: Total number of steps.
        milestones: Steps after which `milestone` is called.
        milestone: Evaluates the state at a step; after a restart, it may be called for that step
            again.
        stream: Random stream of its batches.
        lost: Indices of the models, if several are trained at once, whose state is no longer
            finite. `train` adds them before it calls `milestone`.
        warmup_steps: Steps of warm-up, if the run has a deadline.
        share: Share of the stage of a plan (`stages.planned`), if that is trained in several parts.
    """

    shapes: Any
    first: Callable[[], Any]
    make_step: Callable[[int, Rate | None, Progress], Callable[[Any, Batch], tuple[Any, Metrics]]]
    operations: Callable[[Any, Batch], float]
    batch_size: int
    steps: int
    milestones: tuple[int, ...]
    milestone: Callable[[int, Any], None]
    stream: Stage
    lost: set[int]
    warmup_steps: int = 0
    share: float = 1.0


class _Pacing:
    """Adapts a stage to its deadline, by the time of its steps and evaluations.

    Attributes:
        steps: Number of steps, which may change during training.
        rate: Fraction of the peak learning rate by step; None without a deadline.
        progress: Fraction of the training that is done after a step, by the number of steps before.
    """

    def __init__(self, job: Job, run: Run, saved: Mapping[str, Any] | None) -> None:
        self._job, self._evaluation_seconds, self._logs, self._pace = job, 0.0, 0, None
        self.steps, self.rate = job.steps, None
        self.progress: Progress = lambda step: (step + 1) / job.steps
        if run.deadline is not None:
            deadline = run.deadline
            self._pace = pace.Pace(
                job.steps,
                job.warmup_steps,
                lambda: deadline - time.monotonic(),
                saved,
                most_steps=run.most_steps,
            )
            self.steps, self.rate = self._pace.steps, self._pace.rate
            self.progress = self._pace.progress

    def note(self) -> dict[str, Any]:
        """Returns what a checkpoint notes of it."""
        return {"pace": self._pace.record()} if self._pace else {}

    def milestone(self, at: int, state: Any) -> None:
        """Calls the job's `milestone`."""
        began = time.monotonic()
        self._job.milestone(at, state)
        self._evaluation_seconds = time.monotonic() - began

    def replanned(self, at: int, steps: int, step_seconds: float) -> int:
        """Returns the number of steps; see `loop.Effects`."""
        self._logs += 1
        if self._pace is None or self._logs == 1:  # The first steps include the compilation.
            return steps
        evaluations = 1 + sum(at < step < steps for step in self._job.milestones)
        seconds = evaluations * self._evaluation_seconds
        self.steps = self._pace.measured(at, step_seconds, other_seconds=seconds)
        return self.steps


def train(run: Run, stage: str, job: Job) -> tuple[Any, float]:
    """Trains one stage of a run, resuming from its newest checkpoint.

    Args:
        run: The run.
        stage: Name of the stage: its folder in that of the run, and its name in the log.
        job: The training.

    Returns:
        The last state, and the seconds of training, including those before interruptions.

    Raises:
        NonFiniteLossError: If no model has a finite loss; it includes the seconds.
    """
    config = run.config
    folder = run.workdir / stage / CHECKPOINTS
    with checkpoints.Checkpoints(folder, keep=config.keep_checkpoints) as saved:
        first, done, seconds, note = _restore(saved, job)
        pacing = _Pacing(job, run, note.get("pace"))
        steps = pacing.steps
        started = time.monotonic() - seconds
        trace = profiling.Trace(run.workdir / "profile" / stage, first_step=done)

        def on_step(at: int) -> None:
            step_ended()
            shown.steps = pacing.steps
            shown.advance(at)
            if config.profile and mesh.is_writer():
                trace(at)

        def stopping(at: int) -> bool:
            # Several processes must agree, which costs too much to do at every step.
            if jax.process_count() > 1 and at % config.log_every:
                return False
            return mesh.any_process(run.stopping())

        speed = Speed(job.operations, run.mesh, config.compute_dtype)

        def faulty(numbers: Sequence[int], states: Any) -> None:
            known = len(job.lost)
            job.lost.update(i for i in numbers if i not in job.lost and not _is_finite(states[i]))
            if len(job.lost) > known:
                listed = ", ".join(map(str, sorted(job.lost)))
                logging.warning(
                    "%s: the losses of models %s are not finite.", stages.title(stage), listed
                )
                speed.count_again()

        effects = loop.Effects(
            log=lambda at, metrics: run.log.write(stage, at, {**metrics, **speed.of(metrics)}),
            save=lambda at, state: saved.save(
                at,
                state,
                note={
                    "seconds": time.monotonic() - started,
                    "lost": sorted(job.lost),
                    **pacing.note(),
                },
            ),
            faulty=faulty,
            milestone=pacing.milestone,
            progress=on_step,
            stopping=stopping,
            replanned=pacing.replanned,
        )
        with (
            contextlib.closing(run.loader.train(job.batch_size, done, stage=job.stream)) as batches,
            advice.on_divergence(stage),
            advice.on_out_of_memory(stage),
            _timed(started),
            display.stage(stages.title(stage), steps, done, share=job.share) as shown,
            signals.steps() as step_ended,
        ):
            last = loop.fit(
                first,
                speed.counting(job.make_step(done, pacing.rate, pacing.progress)),
                batches,
                first_step=done,
                schedule=loop.Schedule(
                    steps, (*job.milestones, steps), config.log_every, config.save_every
                ),
                effects=effects,
            )
        trace.close()
        if mesh.any_process(signals.stop_requested()):
            raise loop.StoppedError(
                f"stopped after step {pacing.steps} of {pacing.steps}, which is saved"
            )
        logging.debug("%s: %s", stage, _compiled(run.compiled.read()))
        return last, time.monotonic() - started


def _restore(saved: checkpoints.Checkpoints, job: Job) -> tuple[Any, int, float, dict[str, Any]]:
    """Returns the first state, its step, the seconds of training before, and its whole note.

    If there is a checkpoint, the state at step 0 is not created: the devices hold only one state.
    """
    done = saved.newest() or 0
    if not done:
        return job.first(), 0, 0.0, {}
    state, note = saved.restore(done, job.shapes)
    job.lost.update(note.get("lost", ()))  # Earlier versions continued to train these.
    return state, done, note["seconds"], note


@contextlib.contextmanager
def _timed(started: float) -> Iterator[None]:
    """Adds the seconds since `started` to a NonFiniteLossError."""
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


def _compiled(counts: compiling.Compiled) -> str:
    return (
        f"compiled {counts.made} functions, loaded {counts.found} in the cache, in "
        f"{counts.seconds:.1f} s"
    )


def log_selection(run: Run, stage: str, at: int, value: float | list[float]) -> None:
    """Logs the metric that selects models, of one model or of each student."""
    split = run.dataset.selection
    run.log.write(stage, at, {split: value})
    values = np.atleast_1d(value)
    finite_values = values[np.isfinite(values)]
    if not finite_values.size:
        logging.info("%s, step %d: not finite on %s.", stages.title(stage), at, split)
        return
    best = float(finite_values.max())
    display.result(stages.model(stage), best, split)
    logging.info(
        "%s, step %d: %.2f %% on %s%s.",
        stages.title(stage),
        at,
        100 * best,
        split,
        f", the best of {values.size} students" if values.size > 1 else "",
    )
