"""Measures which neurons the head's input depends on most, and for which images."""

import itertools
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import models
from remem_jax.analysis import criticality, visualization
from remem_jax.records import Batch
from remem_jax.storage import files, results
from remem_jax.train import flops
from remem_jax.workflow import context
from remem_jax.workflow.analysis import inputs

NUMBERS = "neurons.npz"
PICTURES = "pictures.npz"
_SAVE_SECONDS = 60.0


def measure(run: context.Run, chosen: list[inputs.Subject]) -> dict[str, Any]:
    """Measures the criticality of all neurons of some blocks, and visualises the most critical.

    Returns:
        For each of the "blocks", the "name" and "title" of its model, its "layer" (from 0), the
        number of "images", the most critical "neurons", its "costs" (forward passes of the whole
        model per image) and the "folder" of its arrays.

    Raises:
        SettingError: If a model has no such block.
    """
    inputs.require_one_process("criticality")
    settings = run.config.criticality
    blocks = list(zip(settings.layers, settings.examples, strict=True))
    return {
        "blocks": [
            _of_block(run, one, one.block(layer), examples)
            for one in chosen
            for layer, examples in blocks
        ]
    }


def _of_block(
    run: context.Run, subject: inputs.Subject, layer: int, examples: int
) -> dict[str, Any]:
    name = f"criticality/{subject.name}_block_{layer}"
    folder = run.workdir / name
    done = results.read(folder / "result.json")
    if done is not None:
        return done
    influence = jax.jit(
        criticality.make_influence(
            subject.model,
            run.loader.evaluation_transform,
            layer=layer,
            chunk=run.config.criticality.chunk,
        )
    )
    found, seconds = _numbers(run, subject, influence, folder, examples)
    most = np.argsort(-found.value[0], kind="stable")[: run.config.criticality.neurons]
    neurons, arrays = _pictures(run, subject, layer, found, [int(neuron) for neuron in most])
    with files.replacing(folder / PICTURES) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    result = {
        "name": subject.name,
        "title": subject.title,
        "layer": layer,
        "images": found.examples,
        "neurons": neurons,
        "costs": _cost(run, subject, influence),
        "seconds": seconds,
        "folder": name,
    }
    results.write(folder / "result.json", result)
    return result


def _numbers(
    run: context.Run,
    subject: inputs.Subject,
    influence: criticality.Influence,
    folder: pathlib.Path,
    examples: int,
) -> tuple[criticality.Criticality, float]:
    """Returns the criticality of all neurons, resuming an interrupted run, and the seconds."""
    settings = run.config.criticality
    before, spent, skip = _restore(folder)
    started, saved, batch = time.monotonic() - spent, time.monotonic(), skip

    def save(now: criticality.Criticality) -> None:
        nonlocal saved, batch
        batch += 1
        if run.stopping() or time.monotonic() - saved > _SAVE_SECONDS:
            saved = time.monotonic()
            _save(folder, now, saved - started, batch)
            logging.info("%s: %d images", folder.name, now.examples)

    left = inputs.batches(run, settings.batch_size, examples=examples, skip=skip)
    first = next(left, None)
    if first is None and before is not None:
        return before, spent
    found = criticality.criticality(
        influence,
        subject.variables,
        itertools.chain([first] if first is not None else [], left),
        ranks=settings.images,
        before=before,
        on_batch=save,
    )
    seconds = time.monotonic() - started
    _save(folder, found, seconds, batch)
    logging.info("%s: %d images in %.1f s", folder.name, found.examples, seconds)
    return found, seconds


def _restore(folder: pathlib.Path) -> tuple[criticality.Criticality | None, float, int]:
    """Reads the intermediate result, with its seconds and batches."""
    if not (folder / NUMBERS).exists():
        return None, 0.0, 0
    with np.load(folder / NUMBERS, allow_pickle=False) as kept:
        found = criticality.Criticality(kept["value"], kept["example"], int(kept["examples"]))
        return found, float(kept["seconds"]), int(kept["batches"])


def _save(
    folder: pathlib.Path, found: criticality.Criticality, seconds: float, batches: int
) -> None:
    with files.replacing(folder / NUMBERS) as file:
        np.savez(file, allow_pickle=False, seconds=seconds, batches=batches, **found._asdict())


def _cost(
    run: context.Run, subject: inputs.Subject, influence: criticality.Influence
) -> dict[str, float]:
    """Returns the operations of the measurement, in forward passes over the same images."""
    batch: Batch = next(inputs.batches(run, run.config.criticality.batch_size, examples=0))
    apply = models.evaluation_apply(subject.model)
    whole = flops.count(
        lambda variables, batch: apply(
            variables, run.loader.evaluation_transform(jax.random.key(0), batch.image)
        ),
        subject.variables,
        batch,
    )
    return {"forward_passes": flops.count(influence, subject.variables, batch) / whole}


def _pictures(
    run: context.Run,
    subject: inputs.Subject,
    layer: int,
    found: criticality.Criticality,
    neurons: list[int],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Returns records and arrays of the most critical neurons, for the report."""
    examples = found.example[:, neurons].T
    images = inputs.images(run, {int(place) for place in examples.ravel() if place >= 0})
    seen = {}
    if run.config.criticality.visualization.steps:
        shown = _visualise(run, subject, layer, neurons, [one.pixels for one in images.values()])
        seen = {"visualisations": shown.pictures, "reached": shown.activations}
    records = [
        {
            "neuron": neuron,
            "criticality": float(found.value[0, neuron]),
            "images": [
                {"place": place, "class": images[place].title, "influence": float(influence)}
                for place, influence in zip(places.tolist(), found.value[:, neuron], strict=True)
                if place >= 0
            ],
        }
        for neuron, places in zip(neurons, examples, strict=True)
    ]
    arrays = {str(place): image.pixels for place, image in images.items()} | seen
    return records, {name: values.astype(np.float16) for name, values in arrays.items()}


def _visualise(
    run: context.Run,
    subject: inputs.Subject,
    layer: int,
    neurons: list[int],
    images: list[np.ndarray],
) -> visualization.Visualisation:
    settings = run.config.criticality.visualization
    # In the topmost block, neurons reach [CLS] only through [CLS] itself.
    top = layer + 1 >= subject.model.size.depth - subject.model.pruned_attention
    ascent = visualization.make_ascent(
        subject.model,
        visualization.colours(2 * np.stack(images) - 1),
        layer=layer,
        side=run.config.data.image_size,
        tokens="cls" if top and subject.model.pool == "cls" else "all",
        jitter=settings.jitter,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )
    return visualization.visualise(
        jax.jit(ascent),
        subject.variables,
        neurons=neurons,
        seeds=tuple(settings.seeds),
        batch=settings.batch_size,
    )
