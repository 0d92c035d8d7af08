"""Compares the rows of a study on the same test images, seed by seed, for its report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from remem_jax import paired
from remem_jax.report.study import differences, results_table

_ABSENT = "not on record"  # For trials of an older version, and settings selected on test.
_OTHERS = "other test images"


def record(study: Mapping[str, Any], records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the difference between each row and its baseline, with its paired error.

    Args:
        study: Record of a study, with its "rows" and "cells".
        records: Records of the trials that are done, by key.

    Returns:
        For each pair of cells, "baseline", "row", "column", "choice" and "seeds": for each seed
        that both rows have, the "difference", its "standard_error" and "p_value" (see
        `paired.difference`) and the number of "images"; or, as "why", the reason there is none.
    """
    cells = {(cell["row"], cell["column"], cell["choice"]): cell for cell in study["cells"]}
    pairs = []
    for below, above in differences.comparisons(study):
        for (row, column, choice), cell in cells.items():
            baseline = cells.get((below["name"], column, choice))
            if row == above["name"] and baseline:
                pairs.append(
                    {
                        "baseline": below["name"],
                        "row": row,
                        "column": column,
                        "choice": choice,
                        "seeds": _by_seed(choice, baseline, cell, records),
                    }
                )
    return pairs


def _by_seed(
    choice: str,
    baseline: Mapping[str, Any],
    cell: Mapping[str, Any],
    records: Mapping[str, Any],
) -> list[dict[str, Any]]:
    below = {replicate["seed"]: records[replicate["trial"]] for replicate in baseline["replicates"]}
    return [
        {
            "seed": replicate["seed"],
            **(
                {"why": _ABSENT}
                if choice == "test" and records[replicate["trial"]]["methods"][0]["on_test"]
                else _difference(choice, records[replicate["trial"]], below[replicate["seed"]])
            ),
        }
        for replicate in cell["replicates"]
        if replicate["seed"] in below
    ]


def _difference(choice: str, above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how much better the students of one trial are than another's, on the same images."""
    data, correct, correct_below = above["data"], _correct(choice, above), _correct(choice, below)
    if correct is None or correct_below is None:
        return {"why": _ABSENT}
    names = ("fingerprint", "test_labels", "metric")
    if any(data[name] != below["data"][name] for name in names):
        return {"why": _OTHERS}
    labels = paired.unpack(data["test_labels"])
    difference = paired.difference(correct, correct_below, labels, data["metric"])
    return {**difference._asdict(), "images": len(labels)}


def _correct(choice: str, record: Mapping[str, Any]) -> np.ndarray | None:
    """Returns which test images the selected students, or the refitted ones, classify correctly.

    The shape is (image,) for one student, and (student, image) for several.
    """
    (row,) = record["methods"]
    row = row["refit"] if choice == results_table.REFIT else row
    if "test_labels" not in record["data"] or not row.get("test_correct"):
        return None
    correct = [paired.unpack(text) for text in row["test_correct"]["students"]]
    return correct[0] if len(correct) == 1 else np.stack(correct)
