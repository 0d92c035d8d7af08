"""Compiles the steps of configs/remem.py for accelerators that this machine does not have.

    make accelerators                                    # all rows, for all targets
    python -m tools.accelerators --rows=Ti-sam,resnet18 --targets=v5e-8
    python -m tools.accelerators --rows='*-sam' --json=table.json
    python -m tools.accelerators --list

It needs the accelerators' compilers (the extra `aot`), but no accelerator. For each step it prints
whether the step fits into memory, how much memory each device needs, what the devices exchange, and
how long compiling took. At the end it lists the failures and exits with status 1 if there are any:
steps that do not compile, do not fit, or exchange more than gradients, parameters and a few
numbers. See docs/accelerators.md.

Each row is compiled in its own process, so a crash is only a failure of that row.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator

from tools.aot import table
from tools.aot.case import FAILED, Result
from tools.aot.rows import ROWS
from tools.aot.targets import TARGETS, is_installed

# JAX computes on the CPU, and libtpu does not query the cloud for TPUs.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}


def main() -> None:
    """Compiles the rows named on the command line, and prints the table."""
    options = _options()
    _require_known("--rows", options.rows, ROWS)
    _require_known("--targets", options.targets, TARGETS)
    cases = list(_cases(options.rows, options.targets))
    if options.list:
        for row, target in cases:
            print(f"{row:20} {target:10} {ROWS[row].title}, {TARGETS[target].title}")
        return
    if not cases:
        sys.exit("No row has both a chosen name and a chosen target; --list shows all rows.")
    missing = {TARGETS[target].package for _, target in cases if not is_installed(TARGETS[target])}
    if missing:
        sys.exit(f"Install the extra aot, or name other targets: {', '.join(sorted(missing))}.")
    print(f"{table.markdown(table.HEADING)}\n{table.markdown(['---'] * len(table.HEADING))}")
    results = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(_compile, row, target, options.timeout) for row, target in cases]
        for job in concurrent.futures.as_completed(jobs):
            results.append(job.result())
            print(table.markdown(table.line(results[-1])), flush=True)
            if options.json:
                records = [result._asdict() for result in results]
                pathlib.Path(options.json).write_text(json.dumps(records, indent=2) + "\n")
    failures = table.failures(results)
    print("", *(failures or [f"All {len(results)} rows passed."]), sep="\n")
    sys.exit(bool(failures))


def _cases(rows: str, targets: str) -> Iterator[tuple[str, str]]:
    """Yields the pairs of row and target that match the patterns."""
    for name, row in ROWS.items():
        for target in row.targets:
            if _matches(name, rows) and _matches(target, targets):
                yield name, target


def _require_known(option: str, patterns: str, known: Iterable[str]) -> None:
    """Exits with a message if one of the patterns matches nothing."""
    unknown = [pattern for pattern in patterns.split(",") if not fnmatch.filter(known, pattern)]
    if unknown:
        sys.exit(f"{option}: nothing is named {', '.join(unknown)}; known: {', '.join(known)}.")


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(","))


def _compile(row: str, target: str, seconds: float) -> Result:
    """Compiles a row for a target in another process."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = pathlib.Path(folder) / "result.json", pathlib.Path(folder) / "log"
        command = [sys.executable, "-m", "tools.aot.case", row, target, str(file)]
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                env=_environment(target),
                stdout=output,
                stderr=output,
                start_new_session=True,  # So that its own child processes can be killed with it.
            )
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return Result(row, target, FAILED, f"not compiled in {seconds:g} seconds")
        if not file.exists():
            last = " ".join(log.read_text(errors="replace").split())[-300:]
            return Result(row, target, FAILED, f"the process ended with status {code}: {last}")
        return Result(**json.loads(file.read_text()))


def _environment(target: str) -> dict[str, str]:
    flags = f"{TARGETS[target].flags} {os.environ.get('XLA_FLAGS', '')}".strip()
    return os.environ | ENVIRONMENT | ({"XLA_FLAGS": flags} if flags else {})


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="*", help="comma-separated names or patterns of rows")
    parser.add_argument("--targets", default="*", help="comma-separated names or patterns")
    parser.add_argument("--jobs", type=int, default=1, help="number of rows compiled at once")
    parser.add_argument("--timeout", type=float, default=900, help="time limit per row, seconds")
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
