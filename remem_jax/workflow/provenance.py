"""The provenance that all results record: data, versions and devices."""

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

import remem_jax
from remem_jax import data as datasets
from remem_jax import paired, settings
from remem_jax.checks import printable
from remem_jax.data import groups
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.storage import results
from remem_jax.storage.identity import Identity
from remem_jax.workflow import context

_EXAMPLES = 20  # Repeated test images that results name.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def identity(run: context.Run, weights: Mapping[str, Any]) -> Identity:
    """Returns the identity of a run: everything that determines its results.

    Args:
        run: The run.
        weights: Digests of the checkpoints that the run reads, by name; see `Identity.inputs`.
    """
    return Identity(
        settings.deciding(run.config),
        {**data_inputs(run.dataset), "input": run.loader.kind, **weights},
    )


def data_inputs(dataset: datasets.Dataset) -> dict[str, Any]:
    """Returns the digests of a data set; see `Identity.inputs`."""
    return {
        "data": dataset.fingerprint,
        **({"unlabelled": dataset.unlabelled.fingerprint} if dataset.unlabelled else {}),
        "classes": results.fingerprint(list(dataset.classes)),
    }


def data(run: context.Run) -> dict[str, Any]:
    """Returns the record of a run's data set."""
    dataset, settings = run.dataset, run.config.data
    return {
        "name": settings.name,
        "title": dataset.title,
        "classes": len(dataset.classes),
        "class_names": list(dataset.classes),
        "metric": dataset.metric,
        "examples": {name: len(split.rows) for name, split in dataset.splits.items()},
        "classes_without_images": absent_classes(dataset),
        "held_out": held_out(dataset),
        "held_out_splits": list(dataset.held_out),
        "groups": groups.record(dataset.groups),
        "selection": dataset.selection,
        "input": run.loader.kind,
        "sizes": sizes(dataset.shapes),
        "source_size": dataset.source_size and list(dataset.source_size),
        "image_size": settings.image_size,
        "preprocessing": preprocessing_of(run).record(),
        "official": dataset.official,
        "skipped": list(dataset.corrupt_images),
        "passed_over": dict(dataset.skipped_files),
        "empty_classes": list(dataset.empty_classes),
        "warnings": list(dataset.warnings),
        "fingerprint": dataset.fingerprint,
        "repeated": repeated(dataset),
        **({"unlabelled": _unlabelled(dataset.unlabelled)} if dataset.unlabelled else {}),
    }


def _unlabelled(images: datasets.Unlabelled) -> dict[str, Any]:
    """Returns the record of unlabelled images."""
    return {
        "examples": images.images,
        "share": images.share,
        "known": images.known,
        "repeated": images.repeated,
        "passed_over": dict(images.skipped_files),
        "fingerprint": images.fingerprint,
    }


def repeated(dataset: datasets.Dataset) -> dict[str, Any] | None:
    """Returns the record of the test images that are also in train or validation; None if unknown.

    "test" is packed by `paired.pack`: whether each test image is one of them. "examples" has the
    name of a test image, and split and name of its duplicate, of the first ones.
    """
    found = dataset.repeated
    if found is None:
        return None
    splits, test = dataset.splits, dataset.splits["test"]
    pairs = list(zip(found.tests.tolist(), found.splits, found.others.tolist(), strict=True))
    different = [test.labels[i] != splits[name].labels[j] for i, name, j in pairs]
    return {
        "images": len(pairs),
        "same_file": int(found.same_file.sum()),
        "different_labels": int(np.sum(different)),
        "test": paired.pack(np.isin(np.arange(len(test.rows)), found.tests)),
        "examples": [
            [printable(test.name(i)), name, printable(splits[name].name(j))]
            for i, name, j in pairs[:_EXAMPLES]
        ],
    }


def absent_classes(dataset: datasets.Dataset) -> dict[str, list[str]]:
    """Returns the names of classes without images, by split."""
    indices = np.arange(len(dataset.classes))
    return {
        name: [dataset.classes[i] for i in np.setdiff1d(indices, split.labels)]
        for name, split in dataset.splits.items()
    }


def held_out(dataset: datasets.Dataset) -> bool:
    """Returns whether validation was held out of train, rather than a split of the data set."""
    return "validation" in dataset.held_out


def sizes(shapes: np.ndarray | None) -> dict[str, Any] | None:
    """Summarises the original image sizes: extremes, medians and the number of different sizes.

    Args:
        shapes: Height and width of each image; None if unknown.
    """
    if shapes is None:
        return None
    statistics = (np.min, np.median, np.max)
    height, width = ([int(statistic(side)) for statistic in statistics] for side in shapes.T)
    return {"height": height, "width": width, "different": len(np.unique(shapes, axis=0))}


def preprocessing_of(run: context.Run) -> Preprocessing:
    """Returns the preprocessing of images for evaluation."""
    return context.preprocessing_of(run.dataset, run.config.data)


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages that matter."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return {"remem_jax": remem_jax.__version__, "python": platform.python_version(), **installed}


def device() -> dict[str, Any]:
    """Returns the record of the devices."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }
