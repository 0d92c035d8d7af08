"""Measures the size, operations and latency of the selected models of a run, from their files.

The students of all methods share one architecture, and the teachers another, so one of each is
measured. Their calls alternate, so that other programs slow down both.
"""

import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax import mesh, models
from remem_jax.records import Params, Variables
from remem_jax.report import initial_students
from remem_jax.storage import results, selected
from remem_jax.train import flops
from remem_jax.weights import augreg, student_normalisation, students
from remem_jax.workflow import provenance

BATCHES = (1, 32)  # A single image, and enough of them to keep a device busy.
_SECONDS = 2.0  # Time to measure a batch size, in which there are at least `_ROUNDS[0]` rounds.
_ROUNDS = (3, 15)  # Minimum and maximum; each model is called once in a round.


class Opened(NamedTuple):
    """A selected model, read from its file.

    Attributes:
        model: The network.
        variables: Its variables, on the host.
    """

    model: Any
    variables: Variables


def with_inference(directory: pathlib.Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the files of the selected models, and what a prediction costs, to the results of a run.

    A run is measured once: its folder keeps the measurement.

    Args:
        directory: Folder of the run, with the selected models.
        record: Contents of its results.json.

    Returns:
        The record with "files" in each of its `methods`, and "inference"; see docs/results.md.
    """
    rows = [row | {"files": files_of(directory, row)} for row in record["methods"]]
    return {**record, "methods": rows, "inference": _inference(directory, record, rows)}


def files_of(directory: pathlib.Path, row: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Returns the "path" in the run's folder, and the "bytes", of a method's selected models.

    Args:
        directory: Folder of the run.
        row: Row of the method in the results.

    Returns:
        "student" (of several seeds, the best on validation) and "teacher"; None for a file that
        does not exist. A teacher with adapters has none.
    """
    names = {
        "student": f"{selected.FOLDER}/{row['method']}_student.safetensors",
        "teacher": str(selected.teacher(directory, row["method"]).relative_to(directory)),
    }
    return {
        role: {"path": name, "bytes": (directory / name).stat().st_size}
        if row[role] is not None and (directory / name).is_file()
        else None
        for role, name in names.items()
    }


def _inference(
    directory: pathlib.Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Returns the measurement that is kept in the folder, or else measures and keeps it.

    Returns:
        None if the device has too little memory, which must not cost a trained run its results.
    """
    paths = {
        role: directory / next(row["files"][role]["path"] for row in rows if row["files"][role])
        for role in ("student", "teacher")
        if any(row["files"][role] for row in rows)
    }
    conditions = {
        "image_size": record["data"]["image_size"],
        "compute_dtype": record["config"]["compute_dtype"],
        "models": {role: record["models"][role] for role in paths},
    }
    kept = results.read(directory / selected.FOLDER / "inference.json")
    if kept and all(kept.get(name) == value for name, value in conditions.items()):
        return kept
    opened = {role: _OPENERS[role](path, record) for role, path in paths.items()}
    try:
        measured = measure(opened, conditions["image_size"])
    except jax.errors.JaxRuntimeError as error:
        if mesh.out_of_memory(error) is None:
            raise
        logging.warning("The latency is not measured: %s", mesh.out_of_memory(error))
        return None
    found = {
        **conditions,
        "device": provenance.device(),
        "threads": len(os.sched_getaffinity(0)),
        **measured,
    }
    results.write(directory / selected.FOLDER / "inference.json", found)
    return found


def _open_student(path: pathlib.Path, record: Mapping[str, Any]) -> Opened:
    name, settings = record["models"]["student"], record["config"]
    model = models.make(
        name,
        classes=record["data"]["classes"],
        stem=settings["student"]["stem"],
        dtype=settings["compute_dtype"],
        **student_normalisation.options(initial_students.normalisation(record)),
        **record["models"]["student_architecture"],
    )
    return Opened(model, students.load(path, model))


def _open_teacher(path: pathlib.Path, record: Mapping[str, Any]) -> Opened:
    """Opens a teacher as the plain ViT that its file holds."""
    checkpoint = augreg.read(path)
    dtype = record["config"]["compute_dtype"]
    model = checkpoint.make(classes=checkpoint.classes, dtype=dtype)
    return Opened(model, {"params": _nested(checkpoint.arrays)})


_OPENERS: dict[str, Callable[[pathlib.Path, Mapping[str, Any]], Opened]] = {
    "student": _open_student,
    "teacher": _open_teacher,
}


def _nested(arrays: Mapping[str, np.ndarray]) -> Params:
    """Returns arrays by slash-joined name as a nested tree."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return tree


def measure(opened: Mapping[str, Opened], image_size: int) -> dict[str, dict[str, Any]]:
    """Measures models on the first device of this process, which holds nothing but them.

    Args:
        opened: Models by name.
        image_size: Side of the images, in pixels.

    Returns:
        For each model "parameters" (their number), "operations" (floating-point operations for one
        image; see `flops.count`), and "milliseconds" of a batch, by its size: the median of calls
        with images that are on the device already.
    """
    placed = {name: jax.device_put(each.variables) for name, each in opened.items()}
    found: dict[str, dict[str, Any]] = {
        name: {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(each.variables["params"])),
            "milliseconds": {},
        }
        for name, each in opened.items()
    }
    for batch in BATCHES:
        pixels = np.random.default_rng(0).uniform(-1, 1, (batch, image_size, image_size, 3))
        images = jax.device_put(pixels.astype(np.float32))
        calls: dict[str, Callable[[], Any]] = {}
        for name, each in opened.items():
            traced = jax.jit(models.evaluation_apply(each.model)).trace(placed[name], images)
            if batch == 1:
                found[name]["operations"] = flops.of_jaxpr(traced.jaxpr.jaxpr)
            compiled = traced.lower().compile()
            calls[name] = _Call(compiled, placed[name], images)
        for name, seconds in _alternate(calls).items():
            found[name]["milliseconds"][str(batch)] = round(1e3 * statistics.median(seconds), 4)
    return found


class _Call(NamedTuple):
    """A call of a compiled model that waits for the result."""

    compiled: Callable[[Variables, jax.Array], jax.Array]
    variables: Variables
    images: jax.Array

    def __call__(self) -> None:
        jax.block_until_ready(self.compiled(self.variables, self.images))


def _alternate(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Calls functions in turn, and returns the seconds of each call after the first."""
    for call in calls.values():
        call()  # The first call allocates memory.
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, (fewest, most) = time.perf_counter(), _ROUNDS
    for done in range(most):
        if done >= fewest and time.perf_counter() - start > _SECONDS:
            break
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    return times
