"""Resolves `config.compute_dtype` if it is "auto"."""

import pathlib

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, platforms
from remem_jax.storage import workdir


def resolved(
    config: ConfigDict, on: jax.sharding.Mesh, directory: pathlib.Path | None = None
) -> ConfigDict:
    """Returns the settings with "auto" in `compute_dtype` replaced by a dtype.

    Args:
        config: All settings.
        on: The devices that the run is compiled for.
        directory: Folder of the run, or None. A run that has started keeps its dtype, whatever
            the devices.

    Raises:
        SettingError: If the config in the folder cannot be read.
    """
    if config.get("compute_dtype") != platforms.AUTO:
        return config
    dtype = platforms.compute_dtype(list(on.devices.flat))
    before = directory and _begun_in(directory)
    if before and before != dtype:
        logging.info(
            "%s was started in %s and continues in it; a new run would compute in %s on these "
            "devices (config.compute_dtype=auto).",
            directory,
            before,
            dtype,
        )
        dtype = before
    found = config.copy_and_resolve_references()
    found.compute_dtype = dtype
    return found


def _begun_in(directory: pathlib.Path) -> str:
    """Returns the dtype of a run that has started, as read by the first process; else ""."""
    found = workdir.read_config(directory) if mesh.is_writer() else None
    return mesh.broadcast_text(str((found or {}).get("compute_dtype", "")))
