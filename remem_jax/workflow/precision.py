"""The type that a run computes in, where `config.compute_dtype` leaves it to the devices."""

import pathlib

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, platforms
from remem_jax.storage import workdir


def resolved(
    config: ConfigDict, on: jax.sharding.Mesh, directory: pathlib.Path | None = None
) -> ConfigDict:
    """The same settings, with the type itself where `compute_dtype` is "auto".

    Args:
        config: All settings.
        on: The devices that the run is compiled for.
        directory: Of the run. One that has begun goes on in the type that it began with, on
            whatever devices. None where nothing was begun.

    Raises:
        SettingError: If what the directory holds cannot be read.
    """
    if config.get("compute_dtype") != platforms.AUTO:
        return config
    dtype = platforms.compute_dtype(list(on.devices.flat))
    before = directory and _begun_in(directory)
    if before and before != dtype:
        logging.info(
            "%s was begun in %s and goes on in it; a new run would compute in %s on these devices "
            "(config.compute_dtype=auto).",
            directory,
            before,
            dtype,
        )
        dtype = before
    found = config.copy_and_resolve_references()
    found.compute_dtype = dtype
    return found


def _begun_in(directory: pathlib.Path) -> str:
    """The type that a run began in, as its first process reads it; "" if it has not begun."""
    found = workdir.read_config(directory) if mesh.is_writer() else None
    return mesh.broadcast_text(str((found or {}).get("compute_dtype", "")))
