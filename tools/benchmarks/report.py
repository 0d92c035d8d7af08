"""Turns figures into records for JSON and into lines of Markdown tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.benchmarks.rows import CPU_TARGETS, GPU_TARGETS, Grid, Row

LOADING = ("loading", "MiB", "way", "seconds", "MiB above start at the peak")


def reached(value: float, targets: Mapping[str, float], *, at_least: bool) -> dict[str, bool]:
    """Returns for each target whether a value is at least (or at most) the target."""
    return {
        name: value >= target if at_least else value <= target for name, target in targets.items()
    }


def last(met: Mapping[str, bool]) -> str:
    """Returns the last target that is met; "no" if none is met, "-" if there are none."""
    names = [name for name, is_met in met.items() if is_met]
    return names[-1] if names else "no" if met else "-"


def of_cpu(
    name: str, row: Row, seconds: Sequence[Sequence[float]], first: Sequence[float]
) -> dict[str, Any]:
    """Returns the record of a row in CPU-seconds: our side, and theirs if there are peers."""
    record = _sides(name, row, seconds, first)
    return _with_targets(record, row.targets, record["ratio"], at_least=False)


def of_gpu(
    name: str,
    row: Row,
    seconds: Sequence[Sequence[float]],
    first: Sequence[float],
    *,
    operations: float,
    peak: float | None,
) -> dict[str, Any]:
    """Returns the record of a row in wall-clock seconds, with images per second and MFU."""
    record = _sides(name, row, seconds, first)
    for side in ("ours", "theirs"):
        if record[side]:
            record[side]["images_per_second"] = row.work.batch / record[side]["median"]
    record["operations"], record["peak"] = operations, peak
    record["utilisation"] = operations / record["ours"]["median"] / peak if peak else None
    return _with_targets(record, row.targets, record["ours"]["images_per_second"], at_least=True)


def of_compiling(
    row: Row, seconds: Sequence[float], targets: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the record of compiling our step of a row."""
    record = _sides("compile", row, [seconds], [None])
    record["name"] = f"compiling: {row.work.name}"
    return _with_targets(record, targets, record["ours"]["median"], at_least=False)


def of_students(grid: Grid, compared: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of many students, from the result of `lockstep.compare`."""
    ways: dict[str, Any] = {}
    for way, clocks in compared["ways"].items():
        ways[way] = {
            clock: {"seconds": seconds, "median": statistics.median(seconds)}
            for clock, seconds in clocks.items()
        }
    for way, clocks in ways.items():
        for clock, timing in clocks.items():
            timing["speed_up"] = ways["apart"][clock]["median"] / timing["median"]
        ways[way]["same_parameters"] = compared["same_parameters"][way]
        ways[way]["met"] = reached(clocks["wall"]["speed_up"], grid.targets, at_least=True)
    return {
        "row": "lockstep",
        "name": grid.name,
        "ways": ways,
        "targets": dict(grid.targets),
    }


def _sides(
    name: str, row: Row, seconds: Sequence[Sequence[float]], first: Sequence[float | None]
) -> dict[str, Any]:
    record: dict[str, Any] = {"row": name, "name": row.name, "work": row.work._asdict()}
    record |= {"ours": None, "theirs": None}
    for side, turns, first_call in zip(("ours", "theirs"), seconds, first, strict=False):
        record[side] = {
            "seconds": list(turns),
            "median": statistics.median(turns),
            "first_call": first_call,
        }
    theirs = record["theirs"]
    record["ratio"] = record["ours"]["median"] / theirs["median"] if theirs else None
    return record


def _with_targets(
    record: dict[str, Any], targets: Mapping[str, float], value: float | None, *, at_least: bool
) -> dict[str, Any]:
    met = {} if value is None else reached(value, targets, at_least=at_least)
    return record | {"targets": dict(targets), "met": met}


def brief(error: Exception) -> str:
    """Returns an error as one line; compilers' errors have many."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def heading(device: str, kind: str) -> tuple[str, ...]:
    """Returns the column titles of the table of steps on a device of this kind."""
    ends = ("met", "first call, s")
    if device == "cpu":
        sides = ("ours ms", "torch + timm ms", "ratio")
        return ("CPU, one core, float32", *sides, *CPU_TARGETS, *ends)
    sides = ("ours images/s", "torch images/s", "ratio of seconds", "MFU")
    return (f"one {kind}, bfloat16", *sides, *GPU_TARGETS, *ends)


def steps_line(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of a row in CPU-seconds."""
    form = "{:.1f} s" if record["row"] == "compile" else "{:.2f}"
    targets = [_number(record["targets"].get(name), form) for name in CPU_TARGETS]
    sides = [record[side] and 1000 * record[side]["median"] for side in ("ours", "theirs")]
    return (
        record["name"],
        *(_number(side, "{:.0f}") for side in sides),
        _number(record["ratio"], "{:.2f}"),
        *targets,
        last(record["met"]),
        _number(record["ours"]["first_call"], "{:.1f}"),
    )


def rates_line(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of a row in images per second."""
    targets = [record["targets"].get(name) for name in GPU_TARGETS]
    sides = [record[side] and record[side]["images_per_second"] for side in ("ours", "theirs")]
    return (
        record["name"],
        *(_number(side, "{:,.0f}") for side in sides),
        _number(record["ratio"], "{:.2f}"),
        _number(record["utilisation"], "{:.1%}"),
        *(_number(target, "{:,.0f}") for target in targets),
        last(record["met"]),
        f"{record['ours']['first_call']:.1f}",
    )


def students_heading(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns the column titles of the table of students."""
    columns = ("wall s", "speed-up", "CPU s", "speed-up", "same parameters")
    return (record["name"], *columns, *record["targets"], "met")


def students_lines(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the cells of each way."""
    return [
        (
            way,
            *(
                _number(timings[clock][key], "{:.2f}")
                for clock in ("wall", "cpu")
                for key in ("median", "speed_up")
            ),
            "yes" if timings["same_parameters"] else "no",
            *(f"{target} x" for target in record["targets"].values()),
            last(timings["met"]),
        )
        for way, timings in record["ways"].items()
    ]


def loading_line(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of one way of reading one checkpoint."""
    return (
        record["name"],
        f"{record['mib']:.0f}",
        record["way"],
        f"{record['median']:.2f}",
        f"{record['peak_mib']:.0f}",
    )


def line(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def rule(cells: Sequence[str]) -> str:
    """Returns the line under a heading: the first column is left-aligned, figures are not."""
    return line(["---", *["---:"] * (len(cells) - 1)])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
