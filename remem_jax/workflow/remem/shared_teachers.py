"""Teachers that trials of a study share: the first trial that needs a teacher trains it for all."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

from absl import logging

from remem_jax import mesh
from remem_jax.storage import locks, logs, results
from remem_jax.train import loop
from remem_jax.workflow import context, training

_RESULT, _TRAINER = "result.json", "trainer.json"
_POLL_SECONDS = 2.0


@contextlib.contextmanager
def home(run: context.Run, stage: str, *, variant: str = "") -> Iterator[context.Run]:
    """Yields the run with the folder in which a stage of its teachers is trained, or is finished.

    That is its own folder, unless `run.shared` is set. Of the trials that share a folder, one
    trains at a time; the others wait, and then find the stage finished. The metrics of training
    are copied into the log of each trial, for its report.

    Args:
        run: The run.
        stage: Name of the stage, which has a result.json when it is finished.
        variant: Name of a folder in the shared one, for what depends on more than the teachers.

    Raises:
        StoppedError: If the run was stopped while it waited.
    """
    if run.shared is None or _began_alone(run, stage):
        yield run
        return
    # Devices of another kind compute with another precision, and divide SAM's batches differently.
    resolved = f"{run.config.compute_dtype}_{run.config.teacher.ascent_examples}"
    folder = run.shared / resolved / variant
    if results.read_for_all(folder / stage / _RESULT) is None:
        if mesh.is_writer():
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(run, folder), logs.RunLog(folder) as log:
            # It may have been finished while this run waited.
            if results.read_for_all(folder / stage / _RESULT) is None:
                results.write_for_all(folder / stage / _TRAINER, {"run": run.workdir.name})
            yield run._replace(workdir=folder, log=log)
    else:
        yield run._replace(workdir=folder)
    _copy_log(folder, run, stage)


def is_trainer(run: context.Run, folder: pathlib.Path, stage: str) -> bool:
    """Returns whether a run was the last that trained a stage in a folder of `home`."""
    record = results.read_for_all(folder / stage / _TRAINER)
    return record is None or record["run"] == run.workdir.name


def result_pattern(method: str) -> str:
    """Returns a pattern for the file that a shared folder has if its teachers are trained."""
    return f"*/teachers/{method}/{_RESULT}"


def _began_alone(run: context.Run, stage: str) -> bool:
    """Returns whether a trial of an earlier version trained, or began, the stage in its folder."""
    began = [(run.workdir / stage / name).exists() for name in (_RESULT, training.CHECKPOINTS)]
    return bool(mesh.broadcast(int(any(began))))


@contextlib.contextmanager
def _locked(run: context.Run, folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a shared folder, after waiting for the trial that holds it."""
    with contextlib.ExitStack() as stack:
        waiting = False
        while not mesh.broadcast(int(_take(stack, folder))):
            if mesh.any_process(run.stopping()):
                raise loop.StoppedError("stopped while another worker trained the teacher")
            if not waiting:
                logging.info("Waiting for another worker, which trains the same teacher.")
            waiting = True
            time.sleep(_POLL_SECONDS)
        yield


def _take(stack: contextlib.ExitStack, folder: pathlib.Path) -> bool:
    """Tries to take the lock, in the process that writes; returns whether it has it."""
    if not mesh.is_writer():
        return False
    try:
        stack.enter_context(locks.held(folder / "lock"))
    except BlockingIOError:
        return False
    return True


def _copy_log(folder: pathlib.Path, run: context.Run, stage: str) -> None:
    """Copies the metrics of a stage into the log of the run, once."""
    if not mesh.is_writer() or any(row["part"] == stage for row in logs.read(run.workdir)):
        return
    for row in logs.read(folder):
        part, step = row.pop("part"), row.pop("step")
        if part == stage or part.startswith(f"{stage}/"):
            row.pop("time")
            run.log.write(part, step, row)
