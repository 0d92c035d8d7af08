"""Speed of what users wait for, beside torch and timm, in one run, as ratios.

    python -m tools.benchmark                       # all rows, some twenty minutes
    python -m tools.benchmark --rows=forward,step --json=figures.json
    python -m tools.benchmark --rows=load           # checkpoints: seconds and peak memory
    python -m tools.benchmark --device=gpu --rows=step,sam

Each side is a process of its own and has the same model and batch; they take turns. On a CPU both
run in float32, on one pinned core, and a row is the median of the CPU-seconds of each side; rows
`*_2_cores` run on two, in seconds on the wall. On a GPU, which is chosen where JAX finds one, a
turn is many steps, and a row is the median of seconds on the wall. The computation is bfloat16,
torch compiles, has channels last, and its optimiser is fused. MFU is our operations, counted,
beside the device's peak. Each ratio is our seconds divided by theirs: below 1 we are faster.

`compile` is CPU-seconds of tracing and compiling the step of `sam_small`, each time in a new
process.
`lockstep` trains the students of one teacher together on one pass of it; apart, as many runs; and
as runs of which the first stores the teacher's answers and the others read them. All must end
with the same parameters; a GPU may need XLA_FLAGS=--xla_gpu_deterministic_ops=true for that.

Without torch and timm (pip install '.[peers,test]') our side alone is measured. The targets for a
GPU are predictions for an H200. Rows `plan_*` are the teacher's step of configs/remem.py by what it
stores for its backward pass; they have our side alone.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tools.benchmarks import facts, loading, rates, report, rows, theirs, turns

COMPILATIONS, TRAININGS = 3, 3  # Most repeats of slow rows.


class Printer:
    """Prints rows as they are measured, and saves the records after each in case of a crash.

    Attributes:
        found: Content of the file.
    """

    def __init__(self, found: dict[str, Any], path: str) -> None:
        self.found, self._path = found, path
        self._heading: Sequence[str] = ()

    def add(self, record: dict[str, Any], heading: Sequence[str], *lines: Sequence[str]) -> None:
        """Prints the lines of a record, below a heading if it differs from the last one."""
        if heading != self._heading:
            print(f"\n{report.line(heading)}\n{report.rule(heading)}")
            self._heading = heading
        for line in lines:
            print(report.line(line), flush=True)
        self._keep(record)

    def failed(self, name: str, error: Exception) -> None:
        """Prints and records that a row could not be measured."""
        print(f"{name} failed: {report.brief(error)}", flush=True)
        self._keep({"row": name, "failed": report.brief(error)})

    def _keep(self, record: dict[str, Any]) -> None:
        self.found["rows"].append(record)
        if self._path:
            text = json.dumps(self.found, indent=2, allow_nan=False)
            pathlib.Path(self._path).expanduser().write_text(text + "\n")


def main() -> None:
    """Measures the rows named on the command line, and prints tables."""
    options, parser = _options()
    begun = facts.collect()
    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    with turns.child() as call:
        begun |= {"devices": call(facts.devices)}
    device = options.device or ("gpu" if begun["devices"]["backend"] == "gpu" else "cpu")
    if device == "gpu" and begun["devices"]["backend"] != "gpu" and not options.tiny:
        parser.error("JAX finds no GPU here: install '.[cuda]', or leave --device out")
    names = options.rows.split(",") if options.rows else list(rows.NAMES[device])
    unknown = [name for name in names if name not in rows.NAMES[device]]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; known: {', '.join(rows.NAMES[device])}")
    print(facts.line(begun))
    printer = Printer({"device": device, "facts": begun, "rows": []}, options.json)
    if "load" in names:  # First: the memory of children is measured from their parent's.
        for record in loading.compare(("Ti/16",) if options.tiny else loading.VARIANTS):
            printer.add(record, report.LOADING, report.loading_line(record))
    steps = [name for name in names if name != "load"]
    sys.exit(0 if not steps or _compare(device, steps, options, printer) else 1)


def _options() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = "; ".join(f"{device}: {','.join(names)}" for device, names in rows.NAMES.items())
    parser.add_argument("--rows", default="", help=f"comma-separated, else all ({known})")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="else a GPU where there is one")
    parser.add_argument("--repeats", type=int, default=8, help="turns of each side")
    parser.add_argument("--core", type=int, default=0, help="the first core to run on, of a CPU")
    parser.add_argument("--batch", type=int, default=0, help="another batch size, on a GPU")
    parser.add_argument("--json", default="", help="file for facts, all timings and medians")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, anywhere: to try the tool, not to measure"
    )
    return parser.parse_args(), parser


def _compare(
    device: str, names: Sequence[str], options: argparse.Namespace, printer: Printer
) -> bool:
    """Measures rows one after another; returns whether all succeeded."""
    with turns.child() as call:
        lacking = call(theirs.missing, "cpu" if options.tiny else device)
    sides = ["ours"] if lacking else ["ours", "theirs"]
    if lacking:
        print(f"Our side alone: {lacking}.")
    printer.found["peers_missing"] = lacking
    well = True
    for name in names:
        try:
            _measure(device, name, sides, options, printer)
        except RuntimeError as error:  # JAX raises it when out of memory; other rows may fit.
            printer.failed(name, error)
            well = False
    return well


def _measure(
    device: str,
    name: str,
    sides: Sequence[str],
    options: argparse.Namespace,
    printer: Printer,
) -> None:
    """Measures a row and prints it."""
    if name == "lockstep":
        grid = rows.CPU_GRID if device == "cpu" else rows.GPU_GRID
        grid = rows.tiny_grid(grid) if options.tiny else grid
        with turns.child({options.core} if device == "cpu" else ()) as call:
            found = call(_train_students, grid, min(options.repeats, TRAININGS))
        record = report.of_students(grid, found)
        printer.add(record, report.students_heading(record), *report.students_lines(record))
        return
    kind = printer.found["facts"]["devices"]["kind"]
    heading = report.heading(device, kind)
    if device == "cpu":
        record = _on_cpu(name, sides, options)
        printer.add(record, heading, report.steps_line(record))
        return
    record = _on_gpu(name, sides, options, kind)
    printer.add(record, heading, report.rates_line(record))
    if "theirs_failed" in record:
        print(f"torch: {record['theirs_failed']}")


def _on_cpu(name: str, sides: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    row = rows.CPU["sam_small" if name == "compile" else name]
    row = rows.tiny(row) if options.tiny else row
    if name == "compile":
        seconds = []
        for _ in range(min(options.repeats, COMPILATIONS)):
            with turns.child({options.core}) as call:
                seconds.append(call(_compile_step, row.work))
        return report.of_compiling(row, seconds, {} if options.tiny else rows.COMPILING)
    cores = range(options.core, options.core + row.cores)
    clock = "cpu" if row.cores == 1 else "wall"
    with contextlib.ExitStack() as stack:
        players = [stack.enter_context(turns.apart(side, row.work, clock, cores)) for side in sides]
        seconds = turns.alternate(players, turns.Turns(options.repeats, steps=1, warm_up=1))
    return report.of_cpu(name, row, seconds, [player.first for player in players])


def _on_gpu(
    name: str, sides: Sequence[str], options: argparse.Namespace, kind: str
) -> dict[str, Any]:
    row = rows.tiny(rows.GPU[name]) if options.tiny else rows.GPU[name]
    if options.batch:
        row = row._replace(work=row.work._replace(batch=options.batch))
    steps = 2 if options.tiny else rates.STEPS
    times = turns.Turns(options.repeats, steps=steps, warm_up=rates.WARM_UP)
    return rates.measure(name, row, sides, times, kind, apart=True)


# Functions for children. They import JAX, which must happen after the core has been chosen.


def _train_students(grid: rows.Grid, repeats: int) -> dict[str, Any]:
    from tools.benchmarks import lockstep

    return lockstep.compare(grid, repeats)


def _compile_step(work: rows.Work) -> float:
    from tools.benchmarks import ours

    return ours.compile_step(work)


if __name__ == "__main__":
    main()
