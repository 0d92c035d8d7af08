"""The steps of configs/remem.py, compiled for accelerators that are not there.

    make accelerators                                    # all rows, for all targets
    python -m tools.accelerators --rows=Ti-sam,resnet18 --targets=v5e-8
    python -m tools.accelerators --rows='*-sam' --json=table.json
    python -m tools.accelerators --list

Needs the accelerators' compilers (the extra `aot`), and none of the accelerators. Prints for each
step whether it fits, what it takes of each device's memory, what the devices exchange in a step,
and how long it took to compile; then what is not as it should be, with exit status 1: a step that
does not compile, does not fit, or exchanges more than gradients, parameters and a few numbers. See
docs/accelerators.md.

Each row is compiled in a process of its own, whose end, whatever it is, the table tells.
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

# JAX computes on the CPU, and libtpu does not ask the cloud which TPUs there are.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}


def main() -> None:
    """Compiles what the command line names, and prints the table."""
    options = _options()
    _require_known("--rows", options.rows, ROWS)
    _require_known("--targets", options.targets, TARGETS)
    cases = list(_cases(options.rows, options.targets))
    if options.list:
        for row, target in cases:
            print(f"{row:20} {target:10} {ROWS[row].title}, {TARGETS[target].title}")
        return
    if not cases:
        sys.exit("No step has such a name and target; --list says which there are.")
    missing = {TARGETS[target].package for _, target in cases if not is_installed(TARGETS[target])}
    if missing:
        sys.exit(f"Install the extra aot, or name other targets: {', '.join(sorted(missing))}.")
    print(f"{table.markdown(table.HEADING)}\n{table.markdown(['---'] * len(table.HEADING))}")
    results = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        tried = [pool.submit(_compile, row, target, options.timeout) for row, target in cases]
        for one in concurrent.futures.as_completed(tried):
            results.append(one.result())
            print(table.markdown(table.line(results[-1])), flush=True)
            if options.json:
                kept = [own._asdict() for own in results]
                pathlib.Path(options.json).write_text(json.dumps(kept, indent=2) + "\n")
    failures = table.failures(results)
    print("", *(failures or [f"All {len(results)} are as they should be."]), sep="\n")
    sys.exit(bool(failures))


def _cases(rows: str, targets: str) -> Iterator[tuple[str, str]]:
    """Every row that is named with each of its targets that is."""
    for name, row in ROWS.items():
        for target in row.targets:
            if _named(name, rows) and _named(target, targets):
                yield name, target


def _require_known(option: str, patterns: str, known: Iterable[str]) -> None:
    """Exits with a message if one of the patterns matches nothing."""
    unknown = [one for one in patterns.split(",") if not fnmatch.filter(known, one)]
    if unknown:
        sys.exit(f"{option}: nothing is named {', '.join(unknown)}; known: {', '.join(known)}.")


def _named(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(","))


def _compile(row: str, target: str, seconds: float) -> Result:
    """Compiles a row for a target, in another process."""
    with tempfile.TemporaryDirectory() as folder:
        file, said = pathlib.Path(folder) / "result.json", pathlib.Path(folder) / "said"
        command = [sys.executable, "-m", "tools.aot.case", row, target, str(file)]
        with said.open("wb") as output:
            child = subprocess.Popen(
                command,
                env=_environment(target),
                stdout=output,
                stderr=output,
                start_new_session=True,  # What it has started ends with it.
            )
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return Result(row, target, FAILED, f"not compiled in {seconds:g} seconds")
        if not file.exists():
            last = " ".join(said.read_text(errors="replace").split())[-300:]
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
    parser.add_argument("--rows", default="*", help="names or patterns, with commas between")
    parser.add_argument("--targets", default="*", help="the same")
    parser.add_argument("--jobs", type=int, default=1, help="compiled at once")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a row")
    parser.add_argument("--json", default="", help="a file for the results")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
