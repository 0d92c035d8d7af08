"""Measures expertness and sparsity of the blocks of some models on a data set."""

import time
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax.analysis import activations, expertness
from remem_jax.checks import require
from remem_jax.storage import results
from remem_jax.workflow import context
from remem_jax.workflow.analysis import inputs


def measure(run: context.Run, models: list[inputs.Subject]) -> dict[str, Any]:
    """Measures expertness, its null distribution and sparsity, as `config.expertness` asks.

    Holds the activations of one batch at a time. Only the energies grow with the number of images:
    one float32 per image and neuron.

    Returns:
        The "clusters", the "threshold", the number of "images", and for each of the "models" its
        "name", "seconds" and "layers".

    Raises:
        SettingError: If there are fewer images or neurons than clusters.
    """
    inputs.require_one_process("expertness")
    settings = run.config.expertness
    clusters = settings.clusters or len(run.dataset.classes)
    images = inputs.count(run)
    require(
        clusters <= images,
        f"config.expertness.clusters must be at most the {images} images of config.images; got "
        f"{clusters}.",
    )
    return {
        "clusters": clusters,
        "threshold": settings.threshold,
        "images": images,
        "models": [_of_model(run, one, clusters) for one in models],
    }


def _of_model(run: context.Run, subject: inputs.Subject, clusters: int) -> dict[str, Any]:
    settings = run.config.expertness
    count = subject.model.size.depth - subject.model.pruned_mlp
    layers = sorted({subject.block(layer) for layer in settings.layers or range(count)})
    folder = run.workdir / "expertness" / subject.name
    missing = [layer for layer in layers if not (folder / f"block_{layer}.json").exists()]
    if missing:
        seen, seconds = _activations(run, subject, missing)
        images = len(next(iter(seen["sparsity"].values())))
        logging.info("%s: %d images in %.1f s", subject.title, images, seconds)
        for layer in missing:
            found = _of_layer(run, seen["energy"].pop(layer), clusters)
            found |= {"layer": layer, "sparsity": float(np.mean(seen["sparsity"][layer]))}
            found |= {"seconds_of_all_layers": seconds, "images": images}
            results.write(folder / f"block_{layer}.json", found)
            logging.info(
                "%s, block %d: expertness %.3f, null model %.3f; %.1f s of clustering",
                subject.title,
                layer + 1,
                found["shares"][0],
                found["null_mean"],
                found["seconds"],
            )
    found = [results.read(folder / f"block_{layer}.json") for layer in layers]
    return {
        "name": subject.name,
        "title": subject.title,
        "layers": found,
    }


def _activations(run: context.Run, subject: inputs.Subject, layers: list[int]) -> tuple[Any, float]:
    """Returns the energies and sparsities of all images, and the seconds."""
    threshold = run.config.expertness.threshold

    def reduce(captured: activations.Captured) -> dict[str, Any]:
        hidden = captured.hidden
        return {
            "energy": {at: expertness.energy(hidden[at]) for at in layers},
            "sparsity": {at: expertness.sparsity(hidden[at], threshold=threshold) for at in layers},
        }

    capture = activations.make_capture(subject.model, layers)
    reduction = jax.jit(
        activations.make_reduction(capture, run.loader.evaluation_transform, reduce)
    )
    images = run.config.images
    started = time.monotonic()
    batches = inputs.batches(run, images.batch_size, examples=images.examples)
    found = activations.rows(reduction, subject.variables, batches)
    return found, time.monotonic() - started


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
