"""Resolves `config.teacher.ascent_examples` if it is -1, which depends on the number of devices."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, settings
from remem_jax.checks import SettingError
from remem_jax.methods import METHODS
from remem_jax.storage import workdir

EACH_DEVICE = -1  # Each device's share of a batch.


def resolved(
    config: ConfigDict, device_mesh: jax.sharding.Mesh, directory: pathlib.Path
) -> ConfigDict:
    """Returns the settings with -1 in `teacher.ascent_examples` replaced by a number of images.

    A run that has started keeps its number on any devices, because it is part of the optimisation.
    A run that an earlier version started has none on record: its -1 stays, and means the devices
    of now.

    Args:
        config: All settings, checked for this mesh.
        device_mesh: The devices that the run is compiled for.
        directory: Folder of the run.

    Raises:
        SettingError: If the config in the folder cannot be read, or if the devices cannot share
            the run's groups of images evenly.
    """
    teacher = config.get("teacher", {})
    if teacher.get("ascent_examples") != EACH_DEVICE or not _has_ascent(config):
        return config
    share = teacher.batch_size // device_mesh.size
    saved = _saved(directory, teacher.batch_size)
    if saved == EACH_DEVICE:
        logging.warning(
            "%s was started by a version that did not record on how many devices "
            "(config.teacher.ascent_examples=-1). SAM's ascent step is taken for each %d images, "
            "which is right if there were %d devices, as now.",
            directory,
            share,
            device_mesh.size,
        )
        return config
    result = config.copy_and_resolve_references()
    result.teacher.ascent_examples = saved or share
    if saved and saved != share:
        _require_even(directory, result, device_mesh)
        logging.info(
            "%s was started with an ascent step of SAM for each %d images, and continues with it; "
            "a new run would take %d on %d devices (config.teacher.ascent_examples=-1).",
            directory,
            saved,
            share,
            device_mesh.size,
        )
    return result


def record(teacher: ConfigDict, device_mesh: jax.sharding.Mesh) -> dict[str, int] | None:
    """Returns how a batch of SAM's teacher is divided; None without SAM.

    "examples" is the number of images that share an ascent step, "devices" on how many devices this
    would be each device's share of "batch_size" images.
    """
    if not teacher.rho:
        return None
    examples = settings.division(teacher, device_mesh).group or teacher.batch_size
    return {
        "examples": examples,
        "batch_size": teacher.batch_size,
        "devices": teacher.batch_size // examples,
    }


def _has_ascent(config: ConfigDict) -> bool:
    methods = [METHODS[name] for name in config.get("methods", ())]
    return any(
        method.has_teacher and method.fixed.get("rho", config.teacher.rho) for method in methods
    )


def _saved(directory: pathlib.Path, batch_size: int) -> int:
    """Returns the setting of the run in the folder, as the first process reads it; 0 if none.

    0 also stands for a run with other batches, or whose whole batch shares an ascent step: that is
    another optimisation, which `workdir.claimed` refuses.
    """
    config = (workdir.read_config(directory) or {}) if mesh.is_writer() else {}
    teacher: Mapping[str, Any] = config.get("teacher", {})
    same = teacher.get("batch_size") == batch_size
    found = teacher.get("ascent_examples", 0) if same else 0
    return int(json.loads(mesh.broadcast_text(json.dumps(found))))


def _require_even(
    directory: pathlib.Path, config: ConfigDict, device_mesh: jax.sharding.Mesh
) -> None:
    """Raises if the devices cannot share the groups of a started run evenly."""
    group, batch_size = config.teacher.ascent_examples, config.teacher.batch_size
    try:
        settings.check_mesh(config, device_mesh)
    except SettingError as error:
        raise SettingError(
            f"The run in {directory} was started with an ascent step of SAM for each {group} "
            f"images (config.teacher.ascent_examples=-1), which {device_mesh.size} devices cannot "
            f"continue: use a number of devices that divides {batch_size // group}, or set another "
            "--workdir."
        ) from error
