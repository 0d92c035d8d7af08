"""Wiring, the last floor that knows a config: a workflow by name, in its own folder."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, settings, signals
from remem_jax.data.custom import folders
from remem_jax.settings import workflows
from remem_jax.settings.analysis import of_models
from remem_jax.storage import files, logs, workdir
from remem_jax.train import compiling
from remem_jax.workflow import context, initial_checkpoints, precision, provenance
from remem_jax.workflow.analysis.pipeline import run_analysis
from remem_jax.workflow.pretrain import run_pretrain
from remem_jax.workflow.remem import cost
from remem_jax.workflow.remem.pipeline import run_remem

WORKFLOWS: dict[str, Callable[[context.Run], None]] = {
    "remem": run_remem,
    "pretrain": run_pretrain,
    "analysis": run_analysis,
}


def _with_checkpoints(config: ConfigDict) -> Iterator[ConfigDict]:
    """The settings of each checkpoint that a workflow starts from."""
    if "analyses" in config:
        yield from (own for _, own in of_models(config))
    elif any(settings.METHODS[method] is not None for method in config.get("methods", ())):
        yield config


def run(
    config: ConfigDict,
    directory: pathlib.Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    given: Collection[str] = (),
) -> None:
    """Checks a config whole, then does what it says in a folder, from where it was stopped.

    Args:
        config: All settings.
        directory: Of the run.
        stopping: Asked after every step; once it says yes, the step is saved and the run stops.
        given: Names of the settings that the user gave; those without an effect are refused.

    Raises:
        SettingError: If a setting, the data, the weights or the folder cannot be used.
        StoppedError: If it was asked to stop.
    """
    workflows.check(config, given)
    folders.require_outside(config.data.name, config.data.path, directory)
    on = _mesh(config)
    config = precision.resolved(config, on, directory)
    with (
        workdir.claimed(directory, settings.plain(config)),
        opened(config, directory, on, stopping) as begun,
    ):
        WORKFLOWS[config.workflow](begun)


def measure_speed(config: ConfigDict) -> cost.Speed:
    """How long the steps of a ReMem run take on this device, by taking some; nothing is kept.

    Args:
        config: All settings, with one method.

    Raises:
        SettingError: If a setting, the data or the weights cannot be used.
    """
    on = _mesh(config)
    config = precision.resolved(config, on)
    with (
        tempfile.TemporaryDirectory() as directory,
        opened(config, pathlib.Path(directory), on) as begun,
    ):
        return cost.measure(begun)


def show_plan(config: ConfigDict) -> None:
    """Says what a ReMem run takes of this device's memory, and how it fits; nothing is kept.

    Args:
        config: All settings.

    Raises:
        SettingError: If it does not fit, or a setting, the data or the weights cannot be used.
    """
    planned = config.copy_and_resolve_references()
    planned.plan_only = True
    on = _mesh(planned)
    with (
        tempfile.TemporaryDirectory() as directory,
        opened(planned, pathlib.Path(directory), on) as begun,
    ):
        run_remem(begun)


def read_data_inputs(config: ConfigDict) -> dict[str, Any]:
    """Digests of the images that a run reads; see `identity.Identity.inputs`.

    Raises:
        SettingError: If they are not there, or cannot be read.
    """
    return provenance.data_inputs(context.load_dataset(config, config.data))


def read_weights_inputs(config: ConfigDict) -> dict[str, Any]:
    """The same of the weights that its teachers start from, which are downloaded if need be."""
    return {"teacher": initial_checkpoints.read_digest(config)}


def _mesh(config: ConfigDict) -> jax.sharding.Mesh:
    compiling.keep(files.cache() / "compiled")
    on = mesh.make_mesh()
    settings.check_mesh(config, on)
    return on


@contextlib.contextmanager
def opened(
    config: ConfigDict,
    directory: pathlib.Path,
    on: jax.sharding.Mesh,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[context.Run]:
    """A run of checked settings, with its checkpoints and images read, and nothing done.

    Args:
        config: All settings; `precision.resolved` where something is to be computed.
        directory: Of the run.
        on: The devices.
        stopping: See `run`.

    Raises:
        SettingError: If the data or the weights cannot be used.
    """
    preloaded = initial_checkpoints.Preloaded(_with_checkpoints(config))
    dataset, loader = context.load_data(config, config.data, on)
    logging.info(
        "%s: %s images of %d classes, on %d x %s%s.",
        dataset.title,
        {name: len(part.rows) for name, part in dataset.splits.items()},
        len(dataset.classes),
        on.size,
        on.devices.flat[0].device_kind,
        f" in {config.compute_dtype}" if "compute_dtype" in config else "",
    )
    with logs.RunLog(directory) as log, signals.running():
        yield context.Run(
            config, directory, dataset, loader, log, stopping, compiling.Counter(), on, preloaded
        )
