"""What the results of every workflow say of the run."""

import platform
from importlib import metadata
from typing import Any

import jax

import remem_jax
from remem_jax.data import preprocessing
from remem_jax.data.preprocessing import Preprocessing
from remem_jax.workflow import parts

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


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
        "preprocessing": preprocessing_of(run).record(),
        "official": dataset.official,
        "skipped": list(dataset.skipped),
        "fingerprint": dataset.fingerprint,
        "cache": settings.cache,  # Where `export` finds them decoded.
    }


def preprocessing_of(run: parts.Run) -> Preprocessing:
    """How the images of a run become what its models see when they are measured."""
    dataset = run.dataset
    return preprocessing.of_data(
        run.config.data.image_size, resized=dataset.resized, source_size=dataset.source_size
    )


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
