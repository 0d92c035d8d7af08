"""How a run is not the paper's, where that is known when it has come to its end: sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.data import registry
from remem_jax.workflow import context, provenance

Rows = Sequence[Mapping[str, Any]]  # Of the methods, as `results.json` has them.


def sentences(run: context.Run, rows: Rows) -> list[str]:
    """All that is to be said of a run and of what its methods came to."""
    return [
        _selected_on(run),
        *_assumed(run.config.data.name),
        *_stored(run),
        *_mirrored(run),
        *_retried(run, rows),
        *_lost(rows),
    ]


def _selected_on(run: context.Run) -> str:
    """Which split selects, as a sentence."""
    held = "held out of train" if provenance.held_out(run.dataset) else "of the data set's own"
    return (
        f"Settings are selected on a validation split {held}; the paper does not say on which "
        "split it selects."
    )


def _assumed(dataset: str) -> list[str]:
    """What the registry assumes of a data set where the paper leaves it open, as a sentence."""
    record = registry.RECORDS.get(dataset)
    return [f"Assumed of {dataset}: {record.note}."] if record and record.note else []


def _stored(run: context.Run) -> list[str]:
    """How the images that the models saw are not those of the data set, as a sentence."""
    if not run.dataset.resized:
        return []
    height, width = run.dataset.source_size or (0, 0)
    return [
        f"Images are stored resized to {height} x {width} pixels, and crops are taken from these; "
        'config.data.input="streamed" takes them from the images as they are.'
    ]


def _mirrored(run: context.Run) -> list[str]:
    """Where training images are not mirrored at random, as a sentence."""
    if run.dataset.flip:
        return []
    return [
        "Images of training are not mirrored, since mirrored ones may be of another class; the "
        "paper's text does not say."
    ]


def _retried(run: context.Run, rows: Rows) -> list[str]:
    """Which teachers have another learning rate than was asked for, as sentences."""
    asked = run.config.teacher.learning_rate
    rates = {
        row["method"]: row["teacher_settings"]["learning_rate"]
        for row in rows
        if row["teacher_settings"]
    }
    return [
        f"The teacher of {method} was tuned at a learning rate of {rate:g}: at {asked:g} its loss "
        "was no number (config.retries)."
        for method, rate in rates.items()
        if rate != asked
    ]


def _lost(rows: Rows) -> list[str]:
    """Which teachers there are not because training diverged, as sentences."""
    found = [(row["method"], row["teacher_lost"]) for row in rows]
    return [
        f"{method} has no teachers of steps {', '.join(map(str, lost['steps']))}: training "
        f"diverged at step {lost['step']}, and students learned from the checkpoints before."
        for method, lost in found
        if lost
    ]
