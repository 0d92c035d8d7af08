"""The calibration and the flatness of the teachers of a run, as tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from remem_jax.report import tables
from remem_jax.report.tables import Results, Table

_NOTE = (
    "The temperature divides a teacher's logits; it is the one that minimises the negative "
    "log-likelihood (NLL, in nats) of the validation images, and changes no prediction. Above 1, "
    "the teacher is overconfident. The calibration error is the expected one (ECE, 15 bins), in "
    "percent. {use}"
)
_CALIBRATED = "Students learned from the calibrated outputs (config.student.flatten=calibrated)."
_PLAIN = (
    "Students learned from the outputs as they are; config.student.flatten=calibrated calibrates "
    "them first."
)
_LEAST_DECIMALS = 3


def of_teachers(results: Results) -> Table | None:
    """Builds the table of calibration before and after; None for runs of earlier versions."""
    rows = [*_rows(results)]
    if not rows:
        return None
    heads = ("Teacher", "Images", "Temperature", "NLL", "NLL, calibrated", "ECE", "ECE, calibrated")
    is_used = results["config"]["student"].get("flatten") == "calibrated"
    note = _NOTE.format(use=_CALIBRATED if is_used else _PLAIN)
    return Table("Calibration of the teachers", heads, tuple(rows), note=note)


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    for record in results["teachers"]:
        found = record.get("calibration")
        if found:
            title = f"{tables.method_title(record['method'])}, step {record['step']}"
            yield _row(title, "validation", found)
    for row in results["methods"]:
        found = (row["teacher"] or {}).get("calibration")
        if found and found.get("test"):
            title = f"{tables.method_title(row['method'])}, step {row['selected']['teacher_step']}"
            yield _row(title, "test", found)


def _row(title: str, split: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = (found[split][name] for name in ("before", "after"))
    return (
        title,
        split,
        tables.decimals(found["temperature"], 2),
        *(tables.decimals(each["nll"], _LEAST_DECIMALS) for each in (before, after)),
        *(tables.percent(each["ece"]) for each in (before, after)),
    )


def flatness(results: Results) -> Table | None:
    """Builds the table of the loss around the teachers' parameters; None if not measured."""
    measured = [record for record in results["teachers"] if record.get("flatness")]
    if not measured:
        return None
    rows = tuple(
        (
            f"{tables.method_title(record['method'])}, step {record['step']}",
            tables.number(record["flatness"]["radius"]),
            *(
                tables.decimals(record["flatness"][name], _LEAST_DECIMALS)
                for name in ("loss", "worst", "sharpness")
            ),
        )
        for record in measured
    )
    note = (
        "The loss is the mean cross-entropy of training images without augmentation, in nats: at "
        "the parameters, and at the distance of the radius from them along its gradient, as in "
        "SAM. The sharpness is the difference; a lower one means a flatter minimum."
    )
    heads = ("Teacher", "Radius", "Loss", "Loss at the radius", "Sharpness")
    return Table("Flatness of the teachers", heads, rows, note=note)
