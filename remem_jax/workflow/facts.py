"""What the results of every workflow say of the run."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

import remem_jax
from remem_jax import data as datasets
from remem_jax import settings
from remem_jax.storage import results
from remem_jax.storage.identity import Identity
from remem_jax.workflow import parts

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def identity(run: parts.Run, weights: Mapping[str, Any]) -> Identity:
    """What decides the result of a run.

    Args:
        run: The run.
        weights: Digests of the checkpoints that it reads, by name; see `Identity.inputs`.
    """
    return Identity(
        settings.deciding(run.config),
        {**data_inputs(run.dataset), "input": run.feed.kind, **weights},
    )


def data_inputs(dataset: datasets.Dataset) -> dict[str, Any]:
    """Digests of a data set; see `Identity.inputs`."""
    return {
        "data": dataset.fingerprint,
        "classes": results.fingerprint(list(dataset.classes)),
    }


def data(run: parts.Run) -> dict[str, Any]:
    """Of the data set."""
    dataset, settings = run.dataset, run.config.data
    return {
        "name": settings.name,
        "title": dataset.title,
        "classes": len(dataset.classes),
        "class_names": list(dataset.classes),
        "metric": dataset.metric,
        "examples": {name: len(part.rows) for name, part in dataset.parts.items()},
        "input": run.feed.kind,
        "source_size": dataset.source_size and list(dataset.source_size),
        "image_size": settings.image_size,
        "official": dataset.official,
        "skipped": list(dataset.skipped),
        "fingerprint": dataset.fingerprint,
    }


def versions() -> dict[str, str]:
    """Of what a run was made with."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"remem_jax": remem_jax.__version__, "python": platform.python_version(), **found}


def device() -> dict[str, Any]:
    """Of what it was made on."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }
