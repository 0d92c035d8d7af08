"""Rows of a study compared on the same test images, seed by seed, for its report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from remem_jax import paired
from remem_jax.report.study import gains

_ABSENT = "not on record"  # An older version ran it, or test itself chose it.
_OTHERS = "other test images"


def record(study: Mapping[str, Any], records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Differences of the students of each row and its baseline, with their paired errors.

    Args:
        study: The record of a study, with its "rows" and "cells".
        records: What trials came to, by key.

    Returns:
        For each pair of cells, "baseline", "row", "column", "choice" and "seeds": of each seed that
        both have the "difference", its "standard_error" and "p_value" (see `paired.difference`)
        and the number of "images"; or "why" there is none.
    """
    cells = {(one["row"], one["column"], one["choice"]): one for one in study["cells"]}
    found = []
    for below, above in gains.comparisons(study):
        for (row, column, choice), cell in cells.items():
            baseline = cells.get((below["name"], column, choice))
            if row == above["name"] and baseline:
                found.append(
                    {
                        "baseline": below["name"],
                        "row": row,
                        "column": column,
                        "choice": choice,
                        "seeds": _of_seeds(choice, baseline, cell, records),
                    }
                )
    return found


def _of_seeds(
    choice: str,
    baseline: Mapping[str, Any],
    cell: Mapping[str, Any],
    records: Mapping[str, Any],
) -> list[dict[str, Any]]:
    below = {one["seed"]: records[one["trial"]] for one in baseline["replicates"]}
    return [
        {
            "seed": one["seed"],
            **(
                {"why": _ABSENT}
                if choice == "test"
                else _difference(records[one["trial"]], below[one["seed"]])
            ),
        }
        for one in cell["replicates"]
        if one["seed"] in below
    ]


def _difference(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """How far the students of one trial are above those of another, on the same images."""
    data, ours, theirs = above["data"], _correct(above), _correct(below)
    if ours is None or theirs is None:
        return {"why": _ABSENT}
    names = ("fingerprint", "test_labels", "metric")
    if any(data[name] != below["data"][name] for name in names):
        return {"why": _OTHERS}
    labels = paired.unpack(data["test_labels"])
    found = paired.difference(ours, theirs, labels, data["metric"])
    return {**found._asdict(), "images": len(labels)}


def _correct(record: Mapping[str, Any]) -> np.ndarray | None:
    """Which test images the selected students classify correctly: one student, or one a row."""
    (row,) = record["methods"]
    if "test_labels" not in record["data"] or not row.get("test_correct"):
        return None
    found = [paired.unpack(text) for text in row["test_correct"]["students"]]
    return found[0] if len(found) == 1 else np.stack(found)
