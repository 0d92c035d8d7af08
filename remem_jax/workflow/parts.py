"""What the parts of a run share: the data, the log, and training that goes on after a kill."""

import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from remem_jax import data, evaluate
from remem_jax.data import augment, device
from remem_jax.records import Apply, Batch, Metrics, Variables, View
from remem_jax.storage import checkpoints, logs
from remem_jax.train import loop

S = TypeVar("S")
CHECKPOINTS = "checkpoints"

# (variables, "validation" or "test") -> metrics; see `evaluate.evaluate`.
Measure = Callable[[Variables, str], dict[str, float]]


class Run(NamedTuple):
    """A run in progress.

    Attributes:
        config: All settings, checked.
        workdir: Where everything is written.
        dataset: Names, metric and counts; its splits are on the device.
        log: Writes the metrics.
    """

    config: ConfigDict
    workdir: pathlib.Path
    dataset: data.Dataset
    log: logs.RunLog


def load_data(config: ConfigDict, settings: ConfigDict) -> data.Dataset:
    """The data set that `settings` (such as `config.data`) name, on the device."""
    source = data.open_source(settings.name, path=settings.path, data_dir=settings.dir)
    dataset = data.load(
        source,
        validation=settings.validation,
        seed=config.seed,
        stored_size=settings.stored_size,
        corrupt_limit=settings.corrupt_limit,
        resident_gib=settings.resident_gib,
    )
    splits = {name: device.put(split) for name, split in dataset.splits.items()}
    return dataset._replace(splits=splits)


def train(
    run: Run,
    part: str,
    first: S,
    step: Callable[[S, Batch], tuple[S, Metrics]],
    *,
    batch_size: int,
    steps: int,
    milestones: tuple[int, ...],
    milestone: Callable[[int, S], None],
) -> tuple[S, float]:
    """Trains one part of a run to its end, from its newest checkpoint if there is one.

    Args:
        run: The run.
        part: Name of the part: its folder below the run's, and its name in the log.
        first: State at step 0; its structure is that of the checkpoints.
        step: A jitted step.
        batch_size: Examples in a batch.
        steps: Steps in all.
        milestones: After which steps `milestone` is called.
        milestone: Looks at the state; may be called again for a step after a kill.

    Returns:
        The last state, and the seconds that training took, over all interruptions.
    """
    config = run.config
    with checkpoints.Checkpoints(run.workdir / part / CHECKPOINTS) as saved:
        done, seconds = saved.newest() or 0, 0.0
        if done:
            first, seconds = saved.restore(done, first)
        started = time.monotonic() - seconds
        progress = logs.Progress(part, first_step=done, steps=steps)
        effects = loop.Effects(
            log=lambda at, metrics: run.log.write(part, at, metrics),
            save=lambda at, state: saved.save(at, state, seconds=time.monotonic() - started),
            milestone=milestone,
            progress=progress,
        )
        last = loop.fit(
            first,
            step,
            device.train_batches(
                run.dataset.splits["train"],
                batch_size=batch_size,
                seed=config.seed,
                first_step=done,
            ),
            first_step=done,
            schedule=loop.Schedule(steps, milestones, config.log_every, config.save_every),
            effects=effects,
        )
        progress.close()
        return last, time.monotonic() - started


def log_validation(run: Run, part: str, at: int, value: float | list[float]) -> None:
    """Writes how a model, or every student, does on validation, and tells the user."""
    run.log.write(part, at, {"validation": value})
    shown = ", ".join(f"{100 * one:.2f}" for one in np.atleast_1d(value))
    logging.info("%s: step %d, %s %% on validation", part, at, shown)


def make_measure(run: Run, apply: Apply, batch_size: int) -> Measure:
    """Builds the function that measures a model on a split of the run; compiled once."""
    view = augment.make_evaluation_view(size=run.config.data.image_size)
    counts = jax.jit(evaluate.make_counts(apply, view, len(run.dataset.classes)))

    def measure(variables: Variables, split: str) -> dict[str, float]:
        batches = device.evaluation_batches(run.dataset.splits[split], batch_size=batch_size)
        return evaluate.evaluate(counts, variables, batches)

    return measure


def train_view(run: Run) -> View:
    """The view of training that `config.data` asks for."""
    settings = run.config.data
    return augment.make_train_view(
        size=settings.image_size,
        crop_area=tuple(settings.crop_area),
        flip=run.dataset.flip,
    )
