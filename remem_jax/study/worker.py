"""A worker of a study: runs trials from the queue that all workers share, until none is left."""

import contextlib
import json
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import display, mesh, redaction, report, settings, workflow
from remem_jax.checks import SettingError
from remem_jax.data.custom import folders
from remem_jax.report import tables
from remem_jax.storage import checkpoints, results, trackers, workdir
from remem_jax.study import (
    copies,
    cost,
    inputs,
    queue,
    scheduling,
    search,
    space,
    summary,
    teachers,
    unused,
)
from remem_jax.study.claim import Claim
from remem_jax.study.space import Trial
from remem_jax.train import loop

_POLL_SECONDS = 2.0
_WEIGHTS = ("teachers", "students")  # Folders of a trial that hold checkpoints.


class Study(NamedTuple):
    """A study in progress.

    Attributes:
        config: All settings, checked.
        directory: Folder of this worker's trials and of the report.
        search: The search, which schedules trials.
        left_out: The trials that `config.only` leaves out, for the report.
        inputs: Digests of the inputs of the trials.
        teachers: The teachers that trials share.
        queue: Queue that all workers share; None in processes other than the writer.
        cost: Estimated cost of the whole study.
        stopping: Returns whether the user has asked the worker to stop.
        copies: Copies of the trials, for workers that share no folder.
    """

    config: ConfigDict
    directory: pathlib.Path
    search: search.Search
    left_out: scheduling.LeftOut
    inputs: inputs.Inputs
    teachers: teachers.Teachers
    queue: queue.Queue | None
    cost: cost.Total
    stopping: Callable[[], bool]
    copies: copies.Copies


def run(
    config: ConfigDict,
    directory: pathlib.Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    given: Collection[str] = (),
) -> None:
    """Runs trials of a study until all are done, and writes its report after each.

    Any number of workers may run at once. No trial is run twice: if a worker stops or is killed,
    another takes over its trial, and resumes from its last checkpoint if they share `directory`.

    Args:
        config: All settings.
        directory: Folder of the study.
        stopping: Called after every step; the worker stops when it returns True.
        given: Names of the settings that the user gave; those without an effect are rejected.

    Raises:
        SettingError: If a setting, the data, the weights, the storage or the folder cannot be used.
        StoppedError: If `stopping` returned True.
    """
    space.check(config)
    unused.check(config, given)
    grids = space.grid_sizes(config)
    search_by_place = search.Search(config.search, space.trials(config), grids)
    device_mesh = mesh.make_mesh()
    for trial in search_by_place.by_key.values():
        settings.check_mesh(trial.config, device_mesh)
        images = trial.config.data
        folders.require_outside(images.name, images.path, directory, unlabelled=images.unlabelled)
    workdir.share(directory, settings.plain(config))
    total = cost.of_trials(search_by_place.planned, directory)
    logging.info(
        "%s: %d trials, %s teacher steps, %s steps of %s students, %.3g operations; about %s of "
        "training on this device alone.",
        config.title,
        total.trials,
        f"{total.teacher_steps:,}",
        f"{total.student_steps:,}",
        f"{total.students:,}",
        total.operations,
        display.duration(3600 * total.hours),
    )
    if config.plan_only:
        cost.show_plans(search_by_place.planned)
        return
    # Opens the storage first, so that an error comes before all images are read.
    with (
        _open_queue(config, directory) if mesh.is_writer() else contextlib.nullcontext() as shared,
        copies.open_copies(config.artifacts if mesh.is_writer() else "") as kept,
    ):
        digests = inputs.read(space.trials(config))
        digests = inputs.with_kept(digests, search_by_place.by_key, shared, directory)
        trials = space.trials(config, digests.identify)
        workdir.begin(directory, settings.plain(config), inputs.of_study(config, trials, digests))
        trial_search = search.Search(config.search, trials, grids)
        shared_teachers = teachers.Teachers(directory, digests, kept)
        _work(
            Study(
                config,
                directory,
                trial_search,
                scheduling.LeftOut(config),
                digests,
                shared_teachers,
                shared,
                total,
                stopping,
                kept,
            )
        )


def _open_queue(config: ConfigDict, directory: pathlib.Path) -> queue.Queue:
    return queue.open_queue(
        config.storage,
        config.name,
        folder=directory,
        heartbeat_seconds=config.heartbeat_seconds,
        grace_seconds=config.grace_seconds,
        attempts=config.attempts,
    )


def _work(study: Study) -> None:
    """Runs trials until none is left or the worker is stopped; then reports."""
    waiting = False
    try:
        _report(study, idle=1)
        while True:
            if mesh.any_process(study.stopping()):
                raise loop.StoppedError("stopped between two trials")
            claim, step = _next(study)
            if step["do"] == "end":
                break
            if step["do"] == "work":
                _run_trial(study, claim, step)
            else:
                if not waiting:
                    logging.info("Waiting for other workers.")
                    _report(study, idle=1)
                time.sleep(min(_POLL_SECONDS, study.config.heartbeat_seconds))
            waiting = step["do"] == "wait"
    finally:  # Other workers may have finished more trials.
        for line in _report(study):
            logging.info("%s", line)
    logging.info("Report: %s", study.directory / "study.html")


def _next(study: Study) -> tuple[Claim | None, dict[str, Any]]:
    """Returns the next step of this worker, decided by the writer for all of its processes."""
    claim, step = None, {}
    if study.queue:
        schedule = scheduling.schedule(study.search, study.queue)
        by_key = space.to_run(schedule.trials)
        study.queue.add([scheduling.configuration(trial) for trial in by_key.values()])
        free = study.teachers.free(by_key, study.queue.states(by_key))
        claim = study.queue.claim(by_key, free=free)
        states = study.queue.states(by_key)
        if claim:
            trial = by_key[claim.key]
            done = sum(state in ("done", "failed") for state in states.values())
            number = study.queue.numbers([claim.key])[claim.key]
            of_all = f"{done} of {len(study.search.planned)} done"
            title = f"Trial {number} ({of_all}): {scheduling.name(trial)}"
            display.begin_run(title)
            logging.info("%s.", title)
            step = {"do": "work", "key": claim.key}
        elif schedule.more or any(state in ("waiting", "running") for state in states.values()):
            step = {"do": "wait"}
        else:
            step = {"do": "end"}
    return claim, json.loads(mesh.broadcast_text(json.dumps(step)))


def _run_trial(study: Study, claim: Claim | None, step: Mapping[str, Any]) -> None:
    """Runs a trial, and records its result or its failure."""
    trial = study.search.by_key[step["key"]]
    folder = study.directory / "trials" / trial.key
    is_recorded = False
    with claim.working() if claim else contextlib.nullcontext(), _handled(trial, claim):
        _report(study)  # Shows the result of the trial before, and who runs this one.
        shared = study.teachers.folder(trial)
        with study.copies.of((folder, shared), lambda: claim is not None and claim.lost):
            # Rejects images that have changed since the key was computed from them.
            workdir.expect(folder, study.inputs.identity(trial.config))
            workflow.run(
                trial.config,
                folder,
                # If the claim is lost, the result would be dropped.
                stopping=lambda: study.stopping() or (claim is not None and claim.lost),
                shared=shared,
                label=trackers.Label(study.config.name, scheduling.name(trial)),
            )
        if claim:
            record = _record(folder, study.copies.url(folder))
            (row,) = record["methods"]
            value = tables.selecting(row["student"])[record["data"]["metric"]]
            is_recorded = claim.done(value, record)
    # If the claim was lost, another worker may need the weights.
    if is_recorded and not study.config.keep_weights:
        for name in _WEIGHTS:
            checkpoints.remove(folder / name)
        for of_teachers in _remove_teachers(study):
            study.copies.conclude(of_teachers)
    if is_recorded:
        study.copies.conclude(folder)
    jax.clear_caches()  # Steps that trials share stay in the persistent compilation cache.


def _remove_teachers(study: Study) -> list[pathlib.Path]:
    """Removes the weights of teachers that no trial needs any more; returns their folders.

    They are kept for rows and columns that `config.only` leaves out, and while another command has
    trials in the same study that this one does not know.
    """
    if study.queue is None or study.config.only:
        return []
    if study.queue.unfinished() - study.search.by_key.keys():
        return []
    done, others = scheduling.ended(study.search, study.queue)
    return study.teachers.remove_unneeded(done, others)


def _record(folder: pathlib.Path, copy: str) -> dict[str, Any]:
    """Returns the results of a trial, complete enough for any worker to write the report."""
    path = folder / "results.json"
    record = results.read(path)
    if record is None:
        raise SettingError(f"{path} is gone: leave the folder to the study while it runs.")
    return {**record, "worker": platform.node(), "folder": str(folder), "copy": copy}


@contextlib.contextmanager
def _handled(trial: Trial, claim: Claim | None) -> Iterator[None]:
    """Records the failure of a trial in the queue; re-raises errors that end this worker."""
    name = scheduling.name(trial)
    try:
        yield
    except BaseException as error:
        if _continues_after(error, claim):
            logging.warning("%s: %s", name, error)
        elif isinstance(error, SettingError):
            raise SettingError(f"{name}: {error}") from error
        else:
            raise


def _continues_after(error: BaseException, claim: Claim | None) -> bool:
    """Records the failure of a trial in the queue; returns whether the worker continues.

    It continues after a NaN loss, after a lost claim, and, after a pause, if another worker that
    was taken for dead still runs the trial in the same folder.
    """
    if isinstance(error, loop.NonFiniteLossError):
        if claim:
            claim.failed(str(error))
        return True
    # If a worker has several processes, only the first knows that the folder is locked.
    held = isinstance(error, workdir.HeldError) and jax.process_count() == 1
    stopped = isinstance(error, loop.StoppedError)
    if claim:
        temporary = held or stopped or isinstance(error, KeyboardInterrupt)
        reason = redaction.without_secrets(f"{type(error).__name__}: {error}")
        claim.give_back(reason, failed_attempt=not temporary)
    if held:
        time.sleep(_POLL_SECONDS)
    if stopped:
        return mesh.any_process(claim is not None and claim.lost)
    return held


def _report(study: Study, *, idle: int = 0) -> list[str]:
    """Writes the report so far, as any worker may at any time; returns sentences on the best.

    Args:
        study: The study.
        idle: 1 if this worker runs no trial now, but goes on; else 0.
    """
    if study.queue is None:
        return []
    scheduled = scheduling.schedule(study.search, study.queue).trials
    record = summary.make(
        study.config,
        study.search,
        [*scheduled, *study.left_out.finished(study.queue)],
        study.queue,
        study.cost,
        idle=idle,
    )
    results.write(study.directory / "study.json", record)
    report.write_study(study.directory)
    return summary.best(record)
