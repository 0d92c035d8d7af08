"""Sentences on the images that a run was trained, selected and evaluated on; not escaped yet."""

from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.data import registry
from remem_jax.report import tables
from remem_jax.report.tables import Results

_NOUNS = {"train": "training", "validation": "validation", "test": "test"}
_USES = {"validation": "select models", "test": "test models"}


def on_test(results: Results) -> bool:
    """Returns whether all students were evaluated on test, not only the selected ones."""
    requested = bool(results["config"].get("choose_on_test"))
    return requested or any(row.get("on_test") for row in results["methods"])


def reading(results: Results) -> str:
    """Describes the use of the validation and test splits."""
    if tables.selection(results) == "test":
        return (
            "All settings were selected on the test split itself (config.data.validation is 0), so "
            "that the accuracies are optimistic."
        )
    selected = "All settings were selected on the validation split"
    if not on_test(results):
        more = any(row.get("refit") for row in results["methods"])
        again = ", and once for those trained anew on train and validation" if more else ""
        return f"{selected}; the test split was read once, for the selected models{again}."
    return (
        f"{selected}. Every student was evaluated on test as well (config.choose_on_test), which "
        "affects only the table of settings selected on test."
    )


def images(results: Results) -> str:
    """Describes the number and size of the images."""
    data = results["data"]
    examples = data["examples"]
    size = f"{data['image_size']} x {data['image_size']}"
    *others, last = [
        f"{examples[name]:,} {noun}" for name, noun in _NOUNS.items() if name in examples
    ]
    return (
        f"{', '.join(others)} and {last} images {sizes(data)} in {data['classes']:,} classes, "
        f"{_stored(data)}resized to {size} for the models"
    )


def held_out(results: Results) -> str:
    """Describes how many of the training images were held out, and how; "" for older runs."""
    data = results["data"]
    examples, splits = data["examples"], data.get("held_out_splits")
    if splits is None:
        if not data.get("held_out"):
            return ""
        splits = ["validation"]
    if not splits:
        own = "validation" in examples and "the validation split is the data set's own"
        return f"No training image was held out: {own or 'config.data.validation is 0'}."
    images = sum(examples[name] for name in splits)
    uses = [f"{examples[name]:,} to {_USES[name]}" for name in splits]
    listed = f" to {_USES[splits[0]]}" if len(splits) == 1 else f": {' and '.join(uses)}"
    held = f"Of {examples['train'] + images:,} training images, {images:,} were held out{listed}."
    return " ".join(filter(None, (held, _whole(data))))


def _whole(data: Mapping[str, Any]) -> str:
    """Says which groups were not divided."""
    recorded = data.get("groups")
    if not recorded:
        return ""
    kinds = {
        "named": ("named group{}", "named_images"),
        "duplicates": ("group{} of near duplicates", "duplicate_images"),
    }
    listed = " and ".join(
        f"{recorded[name]:,} {noun.format('' if recorded[name] == 1 else 's')} "
        f"({recorded[images]:,} images)"
        for name, (noun, images) in kinds.items()
        if recorded[name]
    )
    verb = "was" if sum(recorded[name] for name in kinds) == 1 else "were"
    return f"{listed} {verb} not divided." if listed else ""


def unlabelled(results: Results) -> str:
    """Describes the images without labels that students learned from; "" if there are none."""
    recorded = results["data"].get("unlabelled")
    if not recorded:
        return ""
    known, repeated = recorded["known"], recorded["repeated"]
    left_out = [
        f"{count:,} {'is' if count == 1 else 'are'} {why}"
        for count, why in ((known, "in the data set too"), (repeated, "repeated"))
        if count
    ]
    return (
        f"Students with a teacher also learned from {recorded['examples']:,} unlabelled images, "
        f"through the teacher alone: {100 * recorded['share']:.0f} % of each batch."
        + (f" Of the folder's images, {' and '.join(left_out)}: left out." if left_out else "")
    )


def sizes(data: Mapping[str, Any]) -> str:
    """Describes the original sizes of the images, to follow "images"."""
    recorded = data.get("sizes")
    if not recorded:
        return "of unrecorded sizes"
    (low, middle, high), (narrow, common, wide) = recorded["height"], recorded["width"]
    if recorded["different"] == 1:
        return f"of {low:,} x {narrow:,} pixels"
    return (
        f"of {_range(low, high)} pixels in height (median {middle:,}) and {_range(narrow, wide)} "
        f"in width (median {common:,})"
    )


def _range(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low < high else f"{low:,}"


def _stored(data: Mapping[str, Any]) -> str:
    """Describes the size in which images are stored, if it may differ from the original one."""
    source, recorded = data["source_size"], data.get("sizes")
    if not source:  # Streamed from the files.
        return ""
    as_stored = [[side] * 3 for side in source]
    if recorded and [recorded["height"], recorded["width"]] == as_stored:
        return ""
    return f"stored as {source[0]} x {source[1]} and "


def counts(results: Results) -> str:
    """Names the metric, and the classes that it covers if not all."""
    metric = results["data"]["metric"]
    covered = coverage(results, "test") if metric == registry.MEAN_PER_CLASS else ""
    return f"The metric is {tables.METRIC_TITLES[metric]}, in percent.{covered and f' {covered}'}"


def coverage(results: Results, *splits: str) -> str:
    """Names the classes that the mean per class leaves out in some splits; empty if none."""
    data = results["data"]
    absent: Mapping[str, Sequence[str]] = data.get("classes_without_images") or {}
    return " ".join(
        f"The mean per class on {split} is over {data['classes'] - len(absent[split]):,} of "
        f"{data['classes']:,} classes: {tables.names(absent[split])} "
        f"{'has' if len(absent[split]) == 1 else 'have'} no image there."
        for split in splits
        if absent.get(split)
    )
