"""Measures forward passes, training steps and loading, compared with torch and timm.

    python -m tools.benchmark                       # all rows, about an hour
    python -m tools.benchmark --rows=forward,step --json=figures.json
    python -m tools.benchmark --rows=load           # checkpoints: seconds and peak memory
    python -m tools.benchmark --device=gpu --rows=step,sam

The two sides, ours and theirs, run the same model and batch in separate processes and take turns.
On a CPU both run in float32 on one pinned core, and a row shows the median CPU-seconds of each
side; rows `*_2_cores` run on two cores and show wall-clock seconds. A GPU is used if JAX finds one;
a turn then is many steps, and a row shows the median wall-clock seconds. The computation is in
bfloat16; torch uses torch.compile, channels last and a fused optimiser. MFU is our number of
operations per second divided by the device's peak. Ratios are our seconds divided by theirs: below
1 we are faster.

`compile` measures the CPU-seconds of tracing and compiling the step of `sam_small`, each time in a
new process.
`lockstep` trains the students of one teacher in three ways: together on one forward pass of the
teacher, in separate runs, and in separate runs of which the first stores the teacher's outputs and
the others read them. All must end with the same parameters; a GPU may need
XLA_FLAGS=--xla_gpu_deterministic_ops=true for that.

Without torch and timm (pip install '.[peers,test]'), only our side is measured. The targets for a
GPU are predictions for an H200. Rows `plan_*` are the teacher's step of configs/remem.py with
different memory plans, which decide what is stored for the backward pass; only our side has them.
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

COMPILATIONS, TRAININGS = 3, 3  # Maximum repeats of slow rows.


class Printer:
    """Prints rows as they are measured, and saves the records after each in case of a crash.

    Attributes:
        content: Content of the file.
    """

    def __init__(self, content: dict[str, Any], path: str) -> None:
        self.content, self._path = content, path
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
        self.content["rows"].append(record)
        if self._path:
            text = json.dumps(self.content, indent=2, allow_nan=False)
            pathlib.Path(self._path).expanduser().write_text(text + "\n")


def main() -> None:
    """Measures the rows named on the command line, and prints tables."""
    options, parser = _options()
    machine = facts.collect()
    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    with turns.child() as call:
        machine |= {"devices": call(facts.devices)}
        device = options.device or ("gpu" if machine["devices"]["backend"] == "gpu" else "cpu")
        lacking = call(theirs.missing, "cpu" if options.tiny else device)
    if device == "gpu" and machine["devices"]["backend"] != "gpu" and not options.tiny:
        parser.error("JAX finds no GPU: install '.[cuda]', or leave out --device")
    names = options.rows.split(",") if options.rows else list(rows.NAMES[device])
    unknown = [name for name in names if name not in rows.NAMES[device]]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; known: {', '.join(rows.NAMES[device])}")
    print(facts.line(machine))
    content = {"device": device, "facts": machine, "rows": [], "peers_missing": lacking}
    printer = Printer(content, options.json)
    if "load" in names:  # First, because the peak memory of children starts at their parent's.
        for record in loading.compare(("Ti/16",) if options.tiny else loading.VARIANTS):
            printer.add(record, report.LOADING, report.loading_line(record))
    steps = [name for name in names if name != "load"]
    sys.exit(0 if not steps or _compare(device, steps, options, printer) else 1)


def _options() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = "; ".join(f"{device}: {','.join(names)}" for device, names in rows.NAMES.items())
    parser.add_argument("--rows", default="", help=f"comma-separated names; all if empty ({known})")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    parser.add_argument("--repeats", type=int, default=8, help="number of turns of each side")
    parser.add_argument("--core", type=int, default=0, help="first CPU core to run on")
    parser.add_argument("--batch", type=int, default=0, help="another batch size (GPU only)")
    parser.add_argument("--json", default="", help="file for facts, all timings and medians")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, to try the tool; timings mean nothing"
    )
    return parser.parse_args(), parser


def _compare(
    device: str, names: Sequence[str], options: argparse.Namespace, printer: Printer
) -> bool:
    """Measures rows one after another; returns whether all succeeded."""
    lacking = printer.content["peers_missing"]
    sides = ["ours"] if lacking else ["ours", "theirs"]
    if lacking:
        print(f"Measuring only our side: {lacking}.")
    succeeded = True
    for name in names:
        try:
            _measure(device, name, sides, options, printer)
        except RuntimeError as error:  # JAX raises it when out of memory; other rows may fit.
            printer.failed(name, error)
            succeeded = False
    return succeeded


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
            timings = call(_train_students, grid, min(options.repeats, TRAININGS))
        record = report.of_students(grid, timings)
        printer.add(record, report.students_heading(record), *report.students_lines(record))
        return
    kind = printer.content["facts"]["devices"]["kind"]
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


# Functions for child processes. They import JAX, which must happen after the core has been chosen.


def _train_students(grid: rows.Grid, repeats: int) -> dict[str, Any]:
    from tools.benchmarks import lockstep

    return lockstep.compare(grid, repeats)


def _compile_step(work: rows.Work) -> float:
    from tools.benchmarks import ours

    return ours.compile_step(work)


if __name__ == "__main__":
    main()
