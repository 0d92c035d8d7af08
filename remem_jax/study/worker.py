"""A worker of a study: takes trials from the queue that all workers share, until none is left."""

import contextlib
import json
import math
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, redaction, report, settings, workflow
from remem_jax.checks import SettingError
from remem_jax.data.custom import folders
from remem_jax.storage import checkpoints, results, workdir
from remem_jax.study import cost, inputs, queue, search, space, summary, unused
from remem_jax.study.space import Trial
from remem_jax.train import loop

_POLL_SECONDS = 2.0
_WEIGHTS = ("teachers", "students")  # Folders of a trial.


class Study(NamedTuple):
    """A study in progress.

    Attributes:
        config: All settings, checked.
        directory: Where this worker's trials lie, and the report.
        search: Which trials are wanted.
        inputs: What they read.
        queue: What all workers share; None where another process of this worker has it.
        cost: What the study costs in all.
        stopping: Whether the user has asked the worker to stop.
    """

    config: ConfigDict
    directory: pathlib.Path
    search: search.Search
    inputs: inputs.Inputs
    queue: queue.Queue | None
    cost: cost.Total
    stopping: Callable[[], bool]


def run(
    config: ConfigDict,
    directory: pathlib.Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    given: Collection[str] = (),
) -> None:
    """Runs trials of a study until all are done, and writes its report after each.

    Any number of workers may do so at once. Nothing is run twice: a worker that stops, or is
    killed, leaves its trial to another, which goes on from its last checkpoint where it finds it
    (in `directory`, if they share it), and else begins it again.

    Args:
        config: All settings.
        directory: Of the study.
        stopping: Asked after every step; once it says yes, the worker stops.
        given: Names of the settings that the user gave; those without an effect are refused.

    Raises:
        SettingError: If a setting, the data, the weights, the storage or the folder cannot be used.
        StoppedError: If it was asked to stop.
    """
    space.check(config)
    unused.check(config, given)
    grids = space.grid_sizes(config)
    by_place = search.Search(config.search, space.trials(config), grids)
    on = mesh.make_mesh()
    for trial in by_place.by_key.values():
        settings.check_mesh(trial.config, on)
        folders.require_outside(trial.config.data.name, trial.config.data.path, directory)
    workdir.share(directory, settings.plain(config))
    total = cost.of_trials(by_place.planned, directory)
    logging.info(
        "%s: %d trials, %s steps of teachers, %s of %s students, %.3g operations; about %s of "
        "training on this device alone.",
        config.title,
        total.trials,
        f"{total.teacher_steps:,}",
        f"{total.student_steps:,}",
        f"{total.students:,}",
        total.operations,
        _duration(total.hours),
    )
    if config.plan_only:
        cost.show_plans(by_place.planned)
        return
    # The storage first: reading all images may take long.
    with _open(config, directory) if mesh.is_writer() else contextlib.nullcontext() as shared:
        read = inputs.read(space.trials(config))
        read = inputs.with_kept(read, by_place.by_key, shared, directory)
        trials = space.trials(config, read.identify)
        workdir.begin(directory, settings.plain(config), inputs.of_study(config, trials, read))
        found = search.Search(config.search, trials, grids)
        _work(Study(config, directory, found, read, shared, total, stopping))


def _open(config: ConfigDict, directory: pathlib.Path) -> queue.Queue:
    return queue.open_queue(
        config.storage,
        config.name,
        folder=directory,
        heartbeat_seconds=config.heartbeat_seconds,
        grace_seconds=config.grace_seconds,
        attempts=config.attempts,
    )


def _work(study: Study) -> None:
    """Takes trials until none is left, or the worker is stopped; then reports."""
    waiting = False
    try:
        _report(study)
        while True:
            if mesh.any_process(study.stopping()):
                raise loop.StoppedError("stopped between two trials")
            claim, step = _next(study)
            if step["do"] == "end":
                break
            if step["do"] == "work":
                _run_trial(study, claim, step)
                _report(study)
            else:
                if not waiting:
                    logging.info("Waiting for what other workers do.")
                time.sleep(min(_POLL_SECONDS, study.config.heartbeat_seconds))
            waiting = step["do"] == "wait"
    finally:  # Others may have done more.
        for line in _report(study):
            logging.info("%s", line)
    logging.info("Report: %s", study.directory / "study.html")


def _next(study: Study) -> tuple[queue.Claim | None, dict[str, Any]]:
    """What this worker does next, decided by the process that has the queue, for all of them."""
    claim, found = None, {}
    if study.queue:
        wanted = _wanted(study)
        by_key = {trial.key: trial for trial in wanted.trials}
        study.queue.want([_point(trial) for trial in wanted.trials])
        claim = study.queue.claim(by_key)
        states = study.queue.states(by_key)
        if claim:
            trial = by_key[claim.key]
            done = sum(state in ("done", "failed") for state in states.values())
            logging.info(
                "Trial %d of %d: %s, %s, seed %d, %s.",
                done + 1,
                study.cost.trials,
                trial.row,
                trial.column,
                trial.seed,
                _shown(trial),
            )
            found = {"do": "work", "key": claim.key}
        elif wanted.more or any(state in ("waiting", "running") for state in states.values()):
            found = {"do": "wait"}
        else:
            found = {"do": "end"}
    return claim, json.loads(mesh.broadcast_text(json.dumps(found)))


def _wanted(study: Study) -> search.Wanted:
    """What the study wants, by what all workers have found."""
    if study.queue is None:
        raise ValueError("Only the process with the queue knows what is wanted.")
    values: dict[str, float] = {}
    while True:  # A rung that is complete makes the next one wanted.
        wanted = study.search.wanted(values)
        keys = [trial.key for trial in wanted.trials]
        now = study.queue.values(keys) | dict.fromkeys(study.queue.failures(keys), -math.inf)
        if now.keys() <= values.keys():
            return wanted
        values |= now


def _point(trial: Trial) -> queue.Point:
    about = {
        "row": trial.row,
        "column": trial.column,
        "seed": trial.seed,
        "fraction": trial.fraction,
    }
    return queue.Point(trial.key, trial.point, about)


def _run_trial(study: Study, claim: queue.Claim | None, step: Mapping[str, Any]) -> None:
    """Runs a trial to its end, and says how it ended."""
    trial = study.search.by_key[step["key"]]
    folder = study.directory / "trials" / trial.key
    counts = False
    with claim.working() if claim else contextlib.nullcontext(), _told(trial, claim):
        # Images that have changed since they were read for the key are refused.
        workdir.expect(folder, study.inputs.identity(trial.config))
        workflow.run(
            trial.config,
            folder,
            # Once it is another's, the work is in vain.
            stopping=lambda: study.stopping() or (claim is not None and claim.lost),
        )
        if claim:
            found = _record(folder)
            (row,) = found["methods"]
            value = row["student"]["validation"][found["data"]["metric"]]
            counts = claim.done(value, found)
    if counts and not study.config.keep_weights:  # Else another may need them.
        for name in _WEIGHTS:
            checkpoints.remove(folder / name)
    jax.clear_caches()  # The steps of this trial; the next one finds what it shares on disk.


def _record(folder: pathlib.Path) -> dict[str, Any]:
    """All that a trial came to, for a report that is written anywhere."""
    path = folder / "results.json"
    found = results.read(path)
    if found is None:
        raise SettingError(f"{path} is gone: leave the folder to the study while it runs.")
    return {**found, "worker": platform.node(), "folder": str(folder)}


@contextlib.contextmanager
def _told(trial: Trial, claim: queue.Claim | None) -> Iterator[None]:
    """Tells the others of a trial that did not end well; raises again what ends this worker."""
    name = f"{trial.row}, {trial.column}, seed {trial.seed}, {_shown(trial)}"
    try:
        yield
    except BaseException as error:
        if _goes_on(error, claim):
            logging.warning("%s: %s", name, error)
        elif isinstance(error, SettingError):
            raise SettingError(f"{name}: {error}") from error
        else:
            raise


def _goes_on(error: BaseException, claim: queue.Claim | None) -> bool:
    """Whether a worker goes on after an error of a trial, of which it tells the others.

    It does after a loss that is no number; where the trial had become another's; and where
    another, which was taken for dead, is still at it in the same folder, and is waited for.
    """
    if isinstance(error, loop.NonFiniteLossError):
        if claim:
            claim.failed(str(error))
        return True
    # Of several processes that make one worker, only the first knows of the folder.
    held = isinstance(error, workdir.HeldError) and jax.process_count() == 1
    stopped = isinstance(error, loop.StoppedError)
    if claim:
        passing = held or stopped or isinstance(error, KeyboardInterrupt)
        reason = redaction.without_secrets(f"{type(error).__name__}: {error}")
        claim.give_back(reason, strike=not passing)
    if held:
        time.sleep(_POLL_SECONDS)
    if stopped:
        return mesh.any_process(claim is not None and claim.lost)
    return held


def _report(study: Study) -> list[str]:
    """Writes what is known so far, as any worker may at any time; its best, in sentences."""
    if study.queue is None:
        return []
    wanted = _wanted(study).trials
    found = summary.make(study.config, study.search, wanted, study.queue, study.cost)
    results.write(study.directory / "study.json", found)
    report.write_study(study.directory)
    return summary.best(found)


def _shown(trial: Trial) -> str:
    point = ", ".join(f"{name} {value:g}" for name, value in trial.point.items())
    short = "" if trial.fraction == 1 else f", {trial.fraction:.3g} of the steps"
    return f"{point or 'no settings'}{short}"


def _duration(hours: float) -> str:
    if hours < 0.1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours"
