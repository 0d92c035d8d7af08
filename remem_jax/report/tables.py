"""Tables and number formats that all reports share. All is plain text, not escaped yet."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remem_jax.methods import METHODS

Results = Mapping[str, Any]

NOTHING = "\N{EN DASH}"  # Printed in place of a missing value.
CLASS_NAMES_SHOWN = 20

_ROW_TITLES = {"lora": "LoRA", "lora_remem": "LoRA with ReMem"}  # Rows of Table 9, in figures.
METRIC_TITLES = {"top1": "top-1 accuracy", "mean_per_class": "mean per-class accuracy"}


class Table(NamedTuple):
    """A table as text.

    Attributes:
        title: Heading of the table.
        columns: Headers of the columns; the first column names the row.
        rows: Cells of each row, one per column.
        numeric: Whether all columns but the first hold numbers.
        note: Explanation printed below the table.
        texts: Indices of columns of text in a numeric table, besides the first.
        links: For each row, the relative address that its first cell links to, which the code made
            and no name is part of; "" for none. Empty without links.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    note: str = ""
    texts: tuple[int, ...] = ()
    links: tuple[str, ...] = ()


def method_title(method: str) -> str:
    """Returns the title of a method; one that `METHODS` does not list keeps its name."""
    if method in METHODS:
        return METHODS[method].title
    return _ROW_TITLES.get(method, method)


def selection(results: Results) -> str:
    """Returns the split that selected the models of a run: "validation", or else "test"."""
    return results["data"].get("selection", "validation")


def selecting(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the metrics that a model is selected by: on validation, or without it on test."""
    return model["validation"] or model["test"]


def best_on_validation(
    rows: Sequence[Mapping[str, Any]], metric: str, role: str = "student"
) -> Mapping[str, Any]:
    """Returns the row of the method whose student, or teacher, is best on validation.

    The first of several that are equal, so that reports, exports and predictions choose the same.
    Without validation images, it is the one that is best on test.

    Args:
        rows: Rows of a run's `methods`, at least one, each with a model of this role.
        metric: Name of the metric.
        role: "student" or "teacher".
    """

    def share(row: Mapping[str, Any]) -> float:
        value = selecting(row[role])[metric]
        return -math.inf if value is None else value

    return max(rows, key=share)


def printable(text: str) -> str:
    """Returns the text on one line, with a mark for each unprintable character."""
    line = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )


def percent(share: float | None) -> str:
    """Formats a fraction as a percentage with two decimals."""
    if share is None:
        return NOTHING
    return f"{100 * share:.2f}" if math.isfinite(share) else "not finite"


def number(value: float | None) -> str:
    """Formats a number with at most six significant digits."""
    if value is None:
        return NOTHING
    return f"{value:.6g}" if math.isfinite(value) else "not finite"


def decimals(value: float | None, digits: int = 5) -> str:
    """Formats a number with a fixed number of decimals."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def p_value(p: float | None) -> str:
    """Formats a p-value with two digits, or as an upper bound if it is tiny."""
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def p_equals(p: float) -> str:
    """Formats a p-value for a sentence: "p = 0.012" or "p < 0.0001"."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def duration(seconds: float) -> str:
    """Formats seconds as seconds, minutes or hours."""
    rounded = round(seconds)
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def deviation(row: Mapping[str, Any], split: str, metric: str) -> str:
    """Formats the sample standard deviation over a method's student seeds, to follow the mean.

    Empty if there is only one seed, or if an older run did not record seeds.
    """
    shares = [student[split][metric] for student in row.get("seeds", ())]
    return f" ± {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""


def cell(value: Any) -> str:
    """Formats a number; leaves text unchanged."""
    return value if isinstance(value, str) else number(value)


def settings(results: Results) -> Table:
    """Builds the table of all settings of a run, by dotted name."""
    config = {name: value for name, value in results["config"].items() if name != "differs"}
    return Table("Settings", ("Setting", "Value"), tuple(_flat(config)), numeric=False)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _setting(value)))
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    return "none" if value is None else str(value)


def names(classes: Sequence[str]) -> str:
    """Lists the first class names and the number of further ones."""
    listed = ", ".join(classes[:CLASS_NAMES_SHOWN])
    hidden = len(classes) - CLASS_NAMES_SHOWN
    return f"{listed} and {hidden:,} more" if hidden > 0 else listed
