"""Measures the criticality of neurons, and visualises the most critical ones."""

import itertools
import pathlib
import time
from typing import Any

import jax
import numpy as np

from remem_jax import display, models
from remem_jax.analysis import criticality, visualization
from remem_jax.records import Batch
from remem_jax.storage import files, results
from remem_jax.train import flops
from remem_jax.workflow import context
from remem_jax.workflow.analysis import inputs

NUMBERS = "neurons.npz"
PICTURES = "pictures.npz"
_SAVE_SECONDS = 60.0


def measure(run: context.Run, checkpoints: list[inputs.Checkpoint]) -> dict[str, Any]:
    """Measures all neurons of the blocks of `config.criticality`; visualises the most critical.

    Returns:
        For each of the "blocks": the model's "name" and "title", the "layer" (from 0), the number
        of "images", the most critical "neurons", the "costs" (in forward passes of the whole model
        per image) and the "folder" of its arrays.

    Raises:
        SettingError: If a model has no such block.
    """
    inputs.require_one_process("criticality")
    settings = run.config.criticality
    blocks = list(zip(settings.layers, settings.examples, strict=True))
    return {
        "blocks": [
            _of_block(run, checkpoint, checkpoint.block(layer), examples)
            for checkpoint in checkpoints
            for layer, examples in blocks
        ]
    }


def _of_block(
    run: context.Run, checkpoint: inputs.Checkpoint, layer: int, examples: int
) -> dict[str, Any]:
    name = f"criticality/{checkpoint.name}_block_{layer}"
    folder = run.workdir / name
    done = results.read(folder / "result.json")
    if done is not None:
        return done
    influence = jax.jit(
        criticality.make_influence(
            checkpoint.model,
            run.loader.evaluation_transform,
            layer=layer,
            chunk=run.config.criticality.chunk,
        )
    )
    images = min(examples or inputs.count(run), inputs.count(run))
    title = f"Criticality of {checkpoint.title}, block {layer + 1}"
    with display.stage(title, images, unit="image") as stage:
        measured, seconds = _numbers(run, checkpoint, influence, folder, examples, stage)
    most_critical = np.argsort(-measured.value[0], kind="stable")[: run.config.criticality.neurons]
    neurons, arrays = _pictures(
        run, checkpoint, layer, measured, [int(neuron) for neuron in most_critical]
    )
    with files.replacing(folder / PICTURES) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    result = {
        "name": checkpoint.name,
        "title": checkpoint.title,
        "layer": layer,
        "images": measured.examples,
        "neurons": neurons,
        "costs": _cost(run, checkpoint, influence),
        "seconds": seconds,
        "folder": name,
    }
    results.write(folder / "result.json", result)
    return result


def _numbers(
    run: context.Run,
    checkpoint: inputs.Checkpoint,
    influence: criticality.Influence,
    folder: pathlib.Path,
    examples: int,
    stage: display.Stage,
) -> tuple[criticality.Criticality, float]:
    """Computes the criticality of all neurons, or resumes it; returns it and the seconds."""
    settings = run.config.criticality
    saved_criticality, spent, skip = _restore(folder)
    started, saved, batch = time.monotonic() - spent, time.monotonic(), skip

    def save(current: criticality.Criticality) -> None:
        nonlocal saved, batch
        batch += 1
        stage.advance(current.examples)
        if run.stopping() or time.monotonic() - saved > _SAVE_SECONDS:
            saved = time.monotonic()
            _save(folder, current, saved - started, batch)

    remaining = inputs.batches(run, settings.batch_size, examples=examples, skip=skip)
    first = next(remaining, None)
    if first is None and saved_criticality is not None:
        return saved_criticality, spent
    measured = criticality.criticality(
        influence,
        checkpoint.variables,
        itertools.chain([first] if first is not None else [], remaining),
        ranks=settings.images,
        before=saved_criticality,
        on_batch=save,
    )
    seconds = time.monotonic() - started
    _save(folder, measured, seconds, batch)
    return measured, seconds


def _restore(folder: pathlib.Path) -> tuple[criticality.Criticality | None, float, int]:
    """Returns the saved criticality, and the seconds and batches so far."""
    if not (folder / NUMBERS).exists():
        return None, 0.0, 0
    with np.load(folder / NUMBERS, allow_pickle=False) as arrays:
        saved = criticality.Criticality(arrays["value"], arrays["example"], int(arrays["examples"]))
        return saved, float(arrays["seconds"]), int(arrays["batches"])


def _save(
    folder: pathlib.Path, measured: criticality.Criticality, seconds: float, batches: int
) -> None:
    with files.replacing(folder / NUMBERS) as file:
        np.savez(file, allow_pickle=False, seconds=seconds, batches=batches, **measured._asdict())


def _cost(
    run: context.Run, checkpoint: inputs.Checkpoint, influence: criticality.Influence
) -> dict[str, float]:
    """Returns the operations of the measurement relative to a forward pass of the whole model."""
    batch: Batch = next(inputs.batches(run, run.config.criticality.batch_size, examples=0))
    apply = models.evaluation_apply(checkpoint.model)
    whole = flops.count(
        lambda variables, batch: apply(
            variables, run.loader.evaluation_transform(jax.random.key(0), batch.image)
        ),
        checkpoint.variables,
        batch,
    )
    return {"forward_passes": flops.count(influence, checkpoint.variables, batch) / whole}


def _pictures(
    run: context.Run,
    checkpoint: inputs.Checkpoint,
    layer: int,
    measured: criticality.Criticality,
    neurons: list[int],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Returns the records of the most critical neurons for the report, and their arrays."""
    examples = measured.example[:, neurons].T
    images = inputs.images(run, {int(place) for place in examples.ravel() if place >= 0})
    visualised = {}
    if run.config.criticality.visualization.steps:
        pixels = [image.pixels for image in images.values()]
        maxima = _visualise(run, checkpoint, layer, neurons, pixels)
        visualised = {"visualisations": maxima.pictures, "reached": maxima.activations}
    records = [
        {
            "neuron": neuron,
            "criticality": float(measured.value[0, neuron]),
            "images": [
                {"place": place, "class": images[place].title, "influence": float(influence)}
                for place, influence in zip(places.tolist(), measured.value[:, neuron], strict=True)
                if place >= 0
            ],
        }
        for neuron, places in zip(neurons, examples, strict=True)
    ]
    arrays = {str(place): image.pixels for place, image in images.items()} | visualised
    return records, {name: values.astype(np.float16) for name, values in arrays.items()}


def _visualise(
    run: context.Run,
    checkpoint: inputs.Checkpoint,
    layer: int,
    neurons: list[int],
    images: list[np.ndarray],
) -> visualization.Visualisation:
    settings = run.config.criticality.visualization
    # In the last block, neurons reach the embedding only through the [CLS] token.
    is_last = layer + 1 >= checkpoint.model.size.depth - checkpoint.model.pruned_attention
    ascent = visualization.make_ascent(
        checkpoint.model,
        visualization.colours(2 * np.stack(images) - 1),
        layer=layer,
        side=run.config.data.image_size,
        tokens="cls" if is_last and checkpoint.model.pool == "cls" else "all",
        jitter=settings.jitter,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )
    return visualization.visualise(
        jax.jit(ascent),
        checkpoint.variables,
        neurons=neurons,
        seeds=tuple(settings.seeds),
        batch=settings.batch_size,
    )
