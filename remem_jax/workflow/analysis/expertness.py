"""Measures the expertness and sparsity of all blocks of some models."""

import time
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import display
from remem_jax.analysis import activations, expertness
from remem_jax.checks import require
from remem_jax.storage import results
from remem_jax.workflow import context
from remem_jax.workflow.analysis import inputs


def measure(run: context.Run, checkpoints: list[inputs.Checkpoint]) -> dict[str, Any]:
    """Measures expertness, its null, and sparsity, by the settings of `config.expertness`.

    Only the activations of one batch are in memory at a time. The energies, one float32 per image
    and neuron, grow with the number of images.

    Returns:
        The "clusters", the "threshold", the number of "images", and for each of the "models" its
        "name", "seconds" and "layers".

    Raises:
        SettingError: If there are more clusters than images or neurons.
    """
    inputs.require_one_process("expertness")
    settings = run.config.expertness
    clusters = settings.clusters or len(run.dataset.classes)
    images = inputs.count(run)
    require(
        clusters <= images,
        f"config.expertness.clusters must be at most {images}, the images of config.images; got "
        f"{clusters}.",
    )
    return {
        "clusters": clusters,
        "threshold": settings.threshold,
        "images": images,
        "models": [_of_model(run, checkpoint, clusters) for checkpoint in checkpoints],
    }


def _of_model(run: context.Run, checkpoint: inputs.Checkpoint, clusters: int) -> dict[str, Any]:
    settings = run.config.expertness
    count = checkpoint.model.size.depth - checkpoint.model.pruned_mlp
    layers = sorted({checkpoint.block(layer) for layer in settings.layers or range(count)})
    folder = run.workdir / "expertness" / checkpoint.name
    missing = [layer for layer in layers if not (folder / f"block_{layer}.json").exists()]
    if missing:
        with display.stage(
            f"Expertness of {checkpoint.title}", len(missing), unit="block"
        ) as stage:
            _measure(run, checkpoint, missing, clusters, stage)
    result = [results.read(folder / f"block_{layer}.json") for layer in layers]
    return {
        "name": checkpoint.name,
        "title": checkpoint.title,
        "layers": result,
    }


def _measure(
    run: context.Run,
    checkpoint: inputs.Checkpoint,
    layers: list[int],
    clusters: int,
    stage: display.Stage,
) -> None:
    """Measures some blocks, and writes a file for each."""
    rows, seconds = _energies(run, checkpoint, layers)
    images = len(next(iter(rows["sparsity"].values())))
    for done, layer in enumerate(layers, start=1):
        result = _of_layer(run, rows["energy"].pop(layer), clusters)
        result |= {"layer": layer, "sparsity": float(np.mean(rows["sparsity"][layer]))}
        result |= {"seconds_of_all_layers": seconds, "images": images}
        results.write(run.workdir / "expertness" / checkpoint.name / f"block_{layer}.json", result)
        stage.advance(done)
        logging.info(
            "%s, block %d: expertness %.3f, by chance %.3f.",
            checkpoint.title,
            layer + 1,
            result["shares"][0],
            result["null_mean"],
        )


def _energies(
    run: context.Run, checkpoint: inputs.Checkpoint, layers: list[int]
) -> tuple[Any, float]:
    """Computes the energies and sparsities of all images; returns them and the seconds."""
    threshold = run.config.expertness.threshold

    def reduce(captured: activations.Captured) -> dict[str, Any]:
        hidden = captured.hidden
        return {
            "energy": {at: expertness.energy(hidden[at]) for at in layers},
            "sparsity": {at: expertness.sparsity(hidden[at], threshold=threshold) for at in layers},
        }

    capture = activations.make_capture(checkpoint.model, layers)
    reduction = jax.jit(
        activations.make_reduction(capture, run.loader.evaluation_transform, reduce)
    )
    settings = run.config.images
    started = time.monotonic()
    batches = inputs.batches(run, settings.batch_size, examples=settings.examples)
    rows = activations.rows(reduction, checkpoint.variables, batches)
    return rows, time.monotonic() - started


def _of_layer(run: context.Run, energies: np.ndarray, clusters: int) -> dict[str, Any]:
    settings = run.config.expertness
    started = time.monotonic()
    shares = [
        expertness.expertness(energies, clusters=clusters, seed=seed).share
        for seed in settings.seeds
    ]
    seconds = (time.monotonic() - started) / len(shares)
    null = expertness.null(energies, clusters=clusters, seeds=tuple(settings.null_seeds))
    return {
        "neurons": energies.shape[1],
        "shares": shares,
        "null_mean": null.mean,
        "null_deviation": null.deviation,
        "seconds": seconds,
    }
