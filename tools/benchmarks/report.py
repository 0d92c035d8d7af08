"""Figures as records for JSON and as lines of Markdown tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.benchmarks.rows import CPU_TARGETS, GPU_TARGETS, Grid, Row

LOADING = ("loading", "MiB", "way", "seconds", "MiB above start at the peak")


def reached(value: float, targets: Mapping[str, float], *, at_least: bool) -> dict[str, bool]:
    """Which targets a value meets: those it is not below, or not above."""
    return {name: value >= to if at_least else value <= to for name, to in targets.items()}


def last(met: Mapping[str, bool]) -> str:
    """The last target that is met, "no" where none is, "-" where there are none."""
    names = [name for name, is_met in met.items() if is_met]
    return names[-1] if names else "no" if met else "-"


def of_cpu(
    name: str, row: Row, seconds: Sequence[Sequence[float]], first: Sequence[float]
) -> dict[str, Any]:
    """The record of a row in CPU-seconds: ours and, where there are peers, theirs."""
    found = _sides(name, row, seconds, first)
    return _judged(found, row.targets, found["ratio"], at_least=False)


def of_gpu(
    name: str,
    row: Row,
    seconds: Sequence[Sequence[float]],
    first: Sequence[float],
    *,
    operations: float,
    peak: float | None,
) -> dict[str, Any]:
    """The record of a row in seconds on the wall, with images per second and MFU."""
    found = _sides(name, row, seconds, first)
    for side in ("ours", "theirs"):
        if found[side]:
            found[side]["images_per_second"] = row.work.batch / found[side]["median"]
    found["operations"], found["peak"] = operations, peak
    found["utilisation"] = operations / found["ours"]["median"] / peak if peak else None
    return _judged(found, row.targets, found["ours"]["images_per_second"], at_least=True)


def of_compiling(
    row: Row, seconds: Sequence[float], targets: Mapping[str, float]
) -> dict[str, Any]:
    """The record of compiling our step of a row."""
    found = _sides("compile", row, [seconds], [None])
    found["name"] = f"compiling: {row.work.name}"
    return _judged(found, targets, found["ours"]["median"], at_least=False)


def of_students(grid: Grid, found: dict[str, Any]) -> dict[str, Any]:
    """The record of many students, from `lockstep.compare`."""
    ways: dict[str, Any] = {}
    for way, clocks in found["ways"].items():
        ways[way] = {
            clock: {"seconds": seconds, "median": statistics.median(seconds)}
            for clock, seconds in clocks.items()
        }
    for way, clocks in ways.items():
        for clock, one in clocks.items():
            one["speed_up"] = ways["apart"][clock]["median"] / one["median"]
        ways[way]["same_parameters"] = found["same_parameters"][way]
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
    found: dict[str, Any] = {"row": name, "name": row.name, "work": row.work._asdict()}
    found |= {"ours": None, "theirs": None}
    for side, turns, begun in zip(("ours", "theirs"), seconds, first, strict=False):
        found[side] = {
            "seconds": list(turns),
            "median": statistics.median(turns),
            "first_call": begun,
        }
    theirs = found["theirs"]
    found["ratio"] = found["ours"]["median"] / theirs["median"] if theirs else None
    return found


def _judged(
    found: dict[str, Any], targets: Mapping[str, float], value: float | None, *, at_least: bool
) -> dict[str, Any]:
    met = {} if value is None else reached(value, targets, at_least=at_least)
    return found | {"targets": dict(targets), "met": met}


def brief(error: Exception) -> str:
    """An error in one line; those of compilers have many."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def heading(device: str, kind: str) -> tuple[str, ...]:
    """What the columns of the table of steps are called, on a device of such a kind."""
    ends = ("met", "first call, s")
    if device == "cpu":
        sides = ("ours ms", "torch + timm ms", "ratio")
        return ("CPU, one core, float32", *sides, *CPU_TARGETS, *ends)
    sides = ("ours images/s", "torch images/s", "ratio of seconds", "MFU")
    return (f"one {kind}, bfloat16", *sides, *GPU_TARGETS, *ends)


def steps_line(record: dict[str, Any]) -> tuple[str, ...]:
    """A row in CPU-seconds."""
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
    """A row in images per second."""
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
    """What the columns of the table of students are called."""
    columns = ("wall s", "speed-up", "CPU s", "speed-up", "same parameters")
    return (record["name"], *columns, *record["targets"], "met")


def students_lines(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each way."""
    return [
        (
            way,
            *(
                _number(found[clock][of], "{:.2f}")
                for clock in ("wall", "cpu")
                for of in ("median", "speed_up")
            ),
            "yes" if found["same_parameters"] else "no",
            *(f"{target} x" for target in record["targets"].values()),
            last(found["met"]),
        )
        for way, found in record["ways"].items()
    ]


def loading_line(record: dict[str, Any]) -> tuple[str, ...]:
    """One way of reading one checkpoint."""
    return (
        record["name"],
        f"{record['mib']:.0f}",
        record["way"],
        f"{record['median']:.2f}",
        f"{record['peak_mib']:.0f}",
    )


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def rule(cells: Sequence[str]) -> str:
    """The line under a heading: the first column to the left, figures to the right."""
    return line(["---", *["---:"] * (len(cells) - 1)])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
