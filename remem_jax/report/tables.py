"""Tables of any report, as plain text: nothing here is escaped yet."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Results = Mapping[str, Any]

NOTHING = "\N{EN DASH}"  # Stands where there is no value.
CLASS_NAMES_SHOWN = 20

METHOD_TITLES = {
    "scratch": "From scratch",
    "finetune": "Fine-tuning",
    "sam": "SAM only",
    "reweight": "Re-weighting only",
    "remem": "ReMem",
    "lora": "LoRA",
    "lora_remem": "LoRA with ReMem",
}
METRIC_TITLES = {"top1": "top-1 accuracy", "mean_per_class": "mean per-class accuracy"}


class Table(NamedTuple):
    """A table as text.

    Attributes:
        title: What it shows.
        columns: Heads of the columns; the first column names the row.
        rows: Cells, one for each column.
        numeric: Whether the cells after the first are numbers.
        note: What a reader should know of it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True
    note: str = ""


def method_title(method: str) -> str:
    """What a method is called in print; a method not known here keeps its name."""
    return METHOD_TITLES.get(method, method)


def percent(share: float | None) -> str:
    """A share as a percentage with two decimals."""
    if share is None:
        return NOTHING
    return f"{100 * share:.2f}" if math.isfinite(share) else "not finite"


def number(value: float | None) -> str:
    """A number as short as can be."""
    if value is None:
        return NOTHING
    return f"{value:.6g}" if math.isfinite(value) else "not finite"


def decimals(value: float | None, digits: int = 5) -> str:
    """A number with so many decimals."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    """Seconds in the units that a reader would use."""
    whole = round(seconds)
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def deviation(row: Mapping[str, Any], split: str, metric: str) -> str:
    """How a method's students differ between their seeds, to stand behind their mean.

    It is the sample standard deviation; nothing where there is one seed (or, in an older run, no
    record of seeds).
    """
    shares = [one[split][metric] for one in row.get("seeds", ())]
    return f" ± {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""


def cell(value: Any) -> str:
    """A text as it is, or a number as short as can be."""
    return value if isinstance(value, str) else number(value)


def settings(results: Results) -> Table:
    """Every setting of the run, by its dotted name."""
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
    """The first names of classes, and how many more there are."""
    shown = ", ".join(classes[:CLASS_NAMES_SHOWN])
    hidden = len(classes) - CLASS_NAMES_SHOWN
    return f"{shown} and {hidden:,} more" if hidden > 0 else shown
