"""The models that were trained anew on train and validation together, beside the selected ones.

As in `comparisons`, all is plain text, not escaped yet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from remem_jax import paired
from remem_jax.report import tables
from remem_jax.report.run import comparisons
from remem_jax.report.tables import Results, Table


def was_made(row: Mapping[str, Any]) -> bool:
    """Returns whether a method has refitted models."""
    return bool((row.get("refit") or {}).get("student"))


def table(results: Results) -> Table | None:
    """Builds the table of accuracies on test before and after; None without a refit."""
    rows = [row for row in results["methods"] if row.get("refit")]
    if not rows:
        return None
    roles = [
        (row, role) for row in rows for role in ("student", "teacher") if row[role] is not None
    ]
    lines = [_line(results, row, role) for row, role in roles]
    selected, images = results["data"]["examples"]["train"], rows[0]["refit"]["images"]
    note = (
        f"The selected models were trained on {selected:,} images. These were trained anew, from "
        f"the start, on train and validation together ({images:,} images), with the same settings "
        "and numbers of steps, so that nothing is left to select on. The test split was read once "
        "more for them. Standard errors are paired, by the choice of test images."
    )
    heads = ("Model", "Selected, test", "Refitted, test", "Difference", "Standard error", "p")
    return Table("Trained anew on train and validation", heads, tuple(lines), note=note)


def failures(results: Results) -> list[str]:
    """Returns a sentence for each method whose refit diverged."""
    return [
        f"{tables.method_title(row['method'])} has no models trained on train and validation: "
        f"{row['refit']['reason']}."
        for row in results["methods"]
        if (row.get("refit") or {}).get("reason")
    ]


def _line(results: Results, row: Mapping[str, Any], role: str) -> tuple[str, ...]:
    metric, again = results["data"]["metric"], row["refit"]
    title = f"{tables.method_title(row['method'])}, {role}"
    selected = tables.percent(row[role]["test"][metric])
    if not was_made(row):
        return (title, selected, *["diverged"], *[tables.NOTHING] * 3)
    refitted = tables.percent(again[role]["test"][metric])
    difference = _difference(results, row, role)
    return (
        title,
        selected,
        refitted,
        comparisons.points(difference.difference, sign=True),
        comparisons.points(difference.standard_error),
        tables.p_value(difference.p_value),
    )


def _difference(results: Results, row: Mapping[str, Any], role: str) -> paired.Difference:
    """Returns the refitted models' accuracy minus the selected ones'."""
    name = "students" if role == "student" else role
    refitted, selected = (_correct(each["test_correct"][name]) for each in (row["refit"], row))
    metric = results["data"]["metric"]
    return paired.difference(refitted, selected, comparisons.labels(results), metric)


def _correct(packed: str | Sequence[str]) -> np.ndarray:
    texts = [packed] if isinstance(packed, str) else packed
    correct = [paired.unpack(text) for text in texts]
    return np.stack(correct) if len(correct) > 1 else correct[0]


def view(results: Results, method: str) -> dict[str, Any]:
    """Returns the results as if the refitted models of a method were its selected ones.

    Args:
        results: Contents of a run's results.json.
        method: Name of a method with a refit.
    """
    (row,) = [row for row in results["methods"] if row["method"] == method]
    again, data = row["refit"], results["data"]

    def tested(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {**model, "validation": None} if model else None

    refitted = {
        **row,
        "student": tested(again["student"]),
        "teacher": tested(again["teacher"]),
        "seeds": [tested(seed) for seed in again["seeds"]],
        "test_correct": again["test_correct"],
        "refit": None,
    }
    examples = {"train": again["images"], "test": data["examples"]["test"]}
    return {
        **results,
        "methods": [refitted if each is row else each for each in results["methods"]],
        "data": {**data, "examples": examples, "refitted": True},
    }
