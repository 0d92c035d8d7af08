"""On which images a run learned, selected and was measured, in words; nothing is escaped yet."""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.data import registry
from remem_jax.report import tables
from remem_jax.report.tables import Results


def on_test(results: Results) -> bool:
    """Whether all students were measured on test, not only those that were selected."""
    asked = bool(results["config"].get("choose_on_test"))
    return asked or any(row.get("on_test") for row in results["methods"])


def reading(results: Results) -> str:
    """What selected, and what was read of test, as sentences."""
    selected = "All settings were selected on the validation split"
    if not on_test(results):
        return f"{selected}; test was read once, for what was selected."
    return (
        f"{selected}. Every student was measured on test as well (config.choose_on_test), which "
        "chose nothing but what the table of settings chosen on test shows."
    )


def images(results: Results) -> str:
    """Numbers and sizes of the images, in words."""
    data = results["data"]
    examples = data["examples"]
    held = ""
    if data.get("held_out"):
        held = f" (held out of the {examples['train'] + examples['validation']:,} of training)"
    seen = f"{data['image_size']} x {data['image_size']}"
    return (
        f"{examples['train']:,} training, {examples['validation']:,} validation{held} and "
        f"{examples['test']:,} test images {sizes(data)} in {data['classes']:,} classes, "
        f"{_stored(data)}seen by the models as {seen}"
    )


def sizes(data: Mapping[str, Any]) -> str:
    """Of which sizes the images are in their files, after "images"."""
    found = data.get("sizes")
    if not found:
        return "of sizes that are not recorded"
    (low, middle, high), (narrow, common, wide) = found["height"], found["width"]
    if found["different"] == 1:
        return f"of {low:,} x {narrow:,} pixels"
    return (
        f"of {_range(low, high)} pixels in height (median {middle:,}) and {_range(narrow, wide)} "
        f"in width (median {common:,})"
    )


def _range(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low < high else f"{low:,}"


def _stored(data: Mapping[str, Any]) -> str:
    """How images are stored on the way to the models, where they are changed or may be."""
    source, found = data["source_size"], data.get("sizes")
    if not source:  # They stream from their files.
        return ""
    same = [[side] * 3 for side in source]
    if found and [found["height"], found["width"]] == same:
        return ""
    return f"stored as {source[0]} x {source[1]} and "


def counts(results: Results) -> str:
    """What counts, with the classes that it covers."""
    metric = results["data"]["metric"]
    covered = coverage(results, "test") if metric == registry.MEAN_PER_CLASS else ""
    return f"What counts is {tables.METRIC_TITLES[metric]}, in percent.{covered and f' {covered}'}"


def coverage(results: Results, *splits: str) -> str:
    """Which classes a mean per class leaves out in some splits, as sentences; may be empty."""
    data = results["data"]
    absent: Mapping[str, Sequence[str]] = data.get("classes_without_images") or {}
    return " ".join(
        f"The mean per class on {split} is over {data['classes'] - len(absent[split]):,} of "
        f"{data['classes']:,} classes: {tables.names(absent[split])} "
        f"{'has' if len(absent[split]) == 1 else 'have'} no image there."
        for split in splits
        if absent.get(split)
    )
