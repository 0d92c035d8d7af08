"""Sentences on differences from the paper that are known only once a run has finished."""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.data import registry
from remem_jax.workflow import context, provenance

Rows = Sequence[Mapping[str, Any]]  # Rows of the methods, as in `results.json`.


def sentences(run: context.Run, rows: Rows) -> list[str]:
    """Returns all sentences on a run and on the rows of its methods."""
    return [
        _selected_on(run),
        *_assumed(run.config.data.name),
        *_stored(run),
        *_mirrored(run),
        *_retried(run, rows),
        *_lost(rows),
        *divided(rows),
    ]


def _selected_on(run: context.Run) -> str:
    """Describes the split used for selection."""
    if run.dataset.selection == "test":
        return (
            "Settings are selected on the test split itself, so that the results are optimistic; "
            "the paper does not say on which split it selects."
        )
    origin = "held out of train" if provenance.held_out(run.dataset) else "of the data set itself"
    return (
        f"Settings are selected on a validation split {origin}; the paper does not say on which "
        "split it selects."
    )


def _assumed(dataset: str) -> list[str]:
    """Returns the registry's assumption on a data set that the paper leaves open."""
    record = registry.RECORDS.get(dataset)
    return [f"Assumption on {dataset}: {record.note}."] if record and record.note else []


def _stored(run: context.Run) -> list[str]:
    """Describes the resizing of stored images."""
    if not run.dataset.resized:
        return []
    height, width = run.dataset.source_size or (0, 0)
    return [
        f"Images are stored resized to {height} x {width} pixels, and crops are taken from them; "
        'config.data.input="streamed" takes them from the original images.'
    ]


def _mirrored(run: context.Run) -> list[str]:
    """Notes that training images are not flipped by the data set's own rule, if so."""
    if run.dataset.flip or run.config.data.flip != "auto":  # The report lists settings.
        return []
    return [
        "Training images are not flipped, since a flipped image may belong to another class; the "
        "paper's text does not say whether it flips them."
    ]


def _retried(run: context.Run, rows: Rows) -> list[str]:
    """Names the teachers that were retried at a lower learning rate."""
    configured = run.config.teacher.learning_rate
    rates = {
        row["method"]: row["teacher_settings"]["learning_rate"]
        for row in rows
        if row["teacher_settings"]
    }
    return [
        f"The teacher of {method} was fine-tuned at a learning rate of {rate:g}: at "
        f"{configured:g}, its loss was not finite (config.retries)."
        for method, rate in rates.items()
        if rate != configured
    ]


def _lost(rows: Rows) -> list[str]:
    """Names the teacher checkpoints that are missing because training diverged."""
    missing = [(row["method"], row["teacher_lost"]) for row in rows]
    return [
        f"{method} has no teacher checkpoints at steps {', '.join(map(str, lost['steps']))}: "
        "training "
        f"diverged at step {lost['step']}, and students were distilled from the checkpoints before."
        for method, lost in missing
        if lost
    ]


def divided(rows: Rows) -> list[str]:
    """Describes the groups of images that share an ascent step of SAM, if batches have several."""
    ascents = [row["ascent"] for row in rows if row["ascent"]]
    return list(
        dict.fromkeys(
            f"SAM's ascent step is taken for each {ascent['examples']:,} images, as on "
            f"{ascent['devices']:,} devices that share a batch of {ascent['batch_size']:,}."
            for ascent in ascents
            if ascent["devices"] > 1
        )
    )
