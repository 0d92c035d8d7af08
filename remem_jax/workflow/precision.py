"""Resolves `config.compute_dtype` if it is "auto"."""

import pathlib

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, platforms
from remem_jax.storage import workdir


def resolved(
    config: ConfigDict, device_mesh: jax.sharding.Mesh, directory: pathlib.Path | None = None
) -> ConfigDict:
    """Returns the settings with "auto" in `compute_dtype` replaced by a dtype.

    Args:
        config: All settings.
        device_mesh: The devices that the run is compiled for.
        directory: Folder of the run, or None. A run that has started keeps its dtype, whatever
            the devices.

    Raises:
        SettingError: If the config in the folder cannot be read.
    """
    if config.get("compute_dtype") != platforms.AUTO:
        return config
    dtype = platforms.compute_dtype(list(device_mesh.devices.flat))
    saved = directory and _saved_dtype(directory)
    if saved and saved != dtype:
        logging.info(
            "%s was started in %s and continues in it; a new run would compute in %s on these "
            "devices (config.compute_dtype=auto).",
            directory,
            saved,
            dtype,
        )
        dtype = saved
    result = config.copy_and_resolve_references()
    result.compute_dtype = dtype
    return result


def _saved_dtype(directory: pathlib.Path) -> str:
    """Returns the dtype of the run in the folder, as the first process reads it; else ""."""
    config = workdir.read_config(directory) if mesh.is_writer() else None
    return mesh.broadcast_text(str((config or {}).get("compute_dtype", "")))
