"""Runs the workflow that a config names. Packages below this one do not read the config."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import display, mesh, settings, signals
from remem_jax.data.custom import folders
from remem_jax.methods import METHODS
from remem_jax.settings import workflows
from remem_jax.settings.analysis import of_models
from remem_jax.storage import files, logs, trackers, workdir
from remem_jax.train import compiling
from remem_jax.workflow import ascent, context, initial_checkpoints, precision, provenance
from remem_jax.workflow.analysis.pipeline import run_analysis
from remem_jax.workflow.remem import cost
from remem_jax.workflow.remem.pipeline import run_remem

WORKFLOWS: dict[str, Callable[[context.Run], None]] = {
    "remem": run_remem,
    "analysis": run_analysis,
}


def _with_checkpoints(config: ConfigDict) -> Iterator[ConfigDict]:
    """Yields, for each checkpoint that a workflow starts from, the settings that name it."""
    if "analyses" in config:
        yield from (model for _, model in of_models(config))
    elif any(METHODS[method].has_teacher for method in config.get("methods", ())):
        yield config


def run(
    config: ConfigDict,
    directory: pathlib.Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    given: Collection[str] = (),
    shared: pathlib.Path | None = None,
    label: trackers.Label | None = None,
) -> None:
    """Checks a config, then runs its workflow in a folder; resumes if the folder has a run.

    Args:
        config: All settings.
        directory: Folder of the run.
        stopping: Called after every step; once it returns True, the state is saved and the run
            stops.
        given: Names of the settings that the user set; those without effect are rejected.
        shared: Folder of the teachers that a trial of a study shares with others; see
            `shared_teachers.home`.
        label: Name and group of the run in the tracker of `config.track`.

    Raises:
        SettingError: If a setting, the data, the weights or the folder cannot be used.
        StoppedError: If `stopping` returned True.
    """
    workflows.check(config, given)
    images = config.data
    folders.require_outside(images.name, images.path, directory, unlabelled=images.unlabelled)
    device_mesh = _mesh(config)
    config = precision.resolved(config, device_mesh, directory)
    config = ascent.resolved(config, device_mesh, directory)
    with (
        workdir.claimed(directory, settings.plain(config)),
        tracked(config, directory, label),
        opened(config, directory, device_mesh, stopping) as opened_run,
    ):
        WORKFLOWS[config.workflow](opened_run._replace(shared=shared))


def tracked(
    config: ConfigDict, directory: pathlib.Path, label: trackers.Label | None = None
) -> contextlib.AbstractContextManager[None]:
    """Returns a block in which the tracker of `config.track` follows a run."""
    tool = "" if config.get("plan_only") else config.track
    return trackers.following(tool, directory, settings.plain(config), label or trackers.Label())


def measure_speed(config: ConfigDict) -> cost.Speed:
    """Measures the steps of a ReMem run on this device by running a few; writes nothing.

    Args:
        config: All settings, with one method.

    Raises:
        SettingError: If a setting, the data or the weights cannot be used.
    """
    device_mesh = _mesh(config)
    config = precision.resolved(config, device_mesh)
    with (
        tempfile.TemporaryDirectory() as directory,
        opened(config, pathlib.Path(directory), device_mesh) as opened_run,
    ):
        return cost.measure(opened_run)


def show_plan(config: ConfigDict) -> None:
    """Logs the memory that a ReMem run needs on this device, and its plan; writes nothing.

    Args:
        config: All settings.

    Raises:
        SettingError: If the run does not fit, or a setting, the data or the weights cannot be used.
    """
    planned = config.copy_and_resolve_references()
    planned.plan_only = True
    device_mesh = _mesh(planned)
    planned = precision.resolved(planned, device_mesh)
    with (
        tempfile.TemporaryDirectory() as directory,
        opened(planned, pathlib.Path(directory), device_mesh) as opened_run,
    ):
        run_remem(opened_run)


def read_data_inputs(config: ConfigDict) -> dict[str, Any]:
    """Returns the digests of the images that a run reads; see `identity.Identity.inputs`.

    Raises:
        SettingError: If the images are missing or cannot be read.
    """
    return provenance.data_inputs(context.load_dataset(config, config.data))


def read_weights_inputs(config: ConfigDict) -> dict[str, Any]:
    """Returns the digest of the teachers' initial weights; downloads them if needed."""
    return {"teacher": initial_checkpoints.read_digest(config)}


def read_student_inputs(config: ConfigDict) -> dict[str, Any]:
    """Returns the digest of the students' initial weights; downloads them if needed."""
    return {"student": initial_checkpoints.read_student(config).digest}


def _mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """Enables the compilation cache, and makes the mesh of all devices for these settings."""
    device_mesh = make_mesh()
    settings.check_mesh(config, device_mesh)
    return device_mesh


def make_mesh() -> jax.sharding.Mesh:
    """Enables the compilation cache, and makes the mesh of all devices."""
    compiling.keep(files.cache() / "compiled")
    return mesh.make_mesh()


@contextlib.contextmanager
def opened(
    config: ConfigDict,
    directory: pathlib.Path,
    device_mesh: jax.sharding.Mesh,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[context.Run]:
    """Opens a run with checked settings: reads its checkpoints and images, writes no results.

    Args:
        config: All settings, with `compute_dtype` and `teacher.ascent_examples` resolved if the run
            computes anything.
        directory: Folder of the run.
        device_mesh: Mesh of devices.
        stopping: See `run`.

    Raises:
        SettingError: If the data or the weights cannot be used.
    """
    students = [config] if initial_checkpoints.starts_pretrained(config) else []
    preloaded = initial_checkpoints.Preloaded(_with_checkpoints(config), students)
    dataset, loader = context.load_data(config, config.data, device_mesh)
    counts = [f"{len(split.rows):,} {name}" for name, split in dataset.splits.items()]
    logging.info(
        "%s: %s images of %d classes%s, on %d x %s%s.",
        dataset.title,
        ", ".join(counts),
        len(dataset.classes),
        f", and {dataset.unlabelled.images:,} without labels" if dataset.unlabelled else "",
        device_mesh.size,
        device_mesh.devices.flat[0].device_kind,
        f" in {config.compute_dtype}" if "compute_dtype" in config else "",
    )
    with logs.RunLog(directory) as log, signals.running(), display.run():
        yield context.Run(
            config,
            directory,
            dataset,
            loader,
            log,
            stopping,
            compiling.Counter(),
            device_mesh,
            preloaded,
        )
