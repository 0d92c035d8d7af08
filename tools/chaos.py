"""Injects faults into a run, again and again, and checks that nothing is lost.

    python -m tools.chaos --workdir=/tmp/chaos --kills=50 --seed=0
    python -m tools.chaos --workdir=/tmp/chaos --images=mine.npz --processes=2
    python -m tools.chaos --workdir=/tmp/chaos -- --config.teacher.tuning=lora

The tool first completes a small but real ReMem run without faults. It then starts the same run in
another folder and injects faults: SIGKILL, SIGTERM, SIGINT, or writes that fail beyond a file size,
as on a full disk. A fault occurs while the run starts up, while it writes a checkpoint, or at any
moment. A run that finishes is compared with the undisturbed one, and the next run begins; the last
run finishes without a fault.

After each fault, every complete checkpoint must match its checksums. The run must have exited with
one line of its own (unless SIGKILL prevented that) and without a traceback. With --kills=0, two
undisturbed runs are compared. The output of the processes is in logs/, the results are in
chaos.json. Folders of runs with problems are kept, and the exit status is then 1.
"""

import argparse
import collections
import contextlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, NamedTuple

from remem_jax import distributed
from remem_jax.storage import checksums

SETTINGS = """
    methods=('scratch','remem') save_every=5 log_every=5 data.image_size=32
    teacher.steps=(20,40) teacher.batch_size=32 student.steps=30 student.batch_size=32
    student.learning_rates=(0.05,0.1) student.evaluations=2
"""
WRITES, NOTHING = "failing writes", "nothing"
KINDS = {"SIGKILL": 45, "SIGTERM": 20, "SIGINT": 15, WRITES: 20}  # Probabilities, in percent.
MOMENTS = {"start-up": 10, "saving": 40, "any": 50}  # Probabilities, in percent.
STAGES = ("loading", "teachers", "students", "between")
COMPLETE = re.compile("[0-9]+|params|student_[0-9]+")  # Names of complete checkpoint folders.
TEMPORARY = (".partial", ".saving", ".old", ".orbax-checkpoint-tmp")  # Suffixes of temporary files.
Process = subprocess.Popen[str]
SAME = ("methods", "teachers", "students", "data", "models")  # Compared keys of results.json.
# Time to exit after a fault: processes may compile, or wait for one that never joined them.
EXIT_SECONDS = distributed.JOIN_SECONDS + 150.0
FINISH_SECONDS = 3600.0


class Job(NamedTuple):
    """The command of a run, without its folder."""

    command: list[str]
    environment: dict[str, str]
    processes: int


class Fault(NamedTuple):
    """A fault to inject into a run."""

    kind: str  # A key of `KINDS`, or `NOTHING`.
    moment: str  # A key of `MOMENTS`, or "never".
    delay: float = 0.0  # Seconds after the start, or after the event of the moment.
    saves: int = 1  # Number of checkpoint folders that must have appeared, for "saving".
    process: int = 0  # Index of the process that is hit.
    limit: int = 0  # File size in bytes beyond which writes fail.


NEVER = Fault(NOTHING, "never")


class Start(NamedTuple):
    """The outcome of one start of a run.

    Attributes:
        folder: Name of the run's folder.
        fault: The fault that was injected.
        stage: Stage of the run at the fault; empty if the run ended before.
        codes: Exit codes of the processes.
        seconds: Duration.
        problems: Descriptions of all problems.
    """

    folder: str
    fault: Fault
    stage: str
    codes: list[int]
    seconds: float
    problems: list[str]

    def record(self) -> dict[str, Any]:
        """Returns the entry of chaos.json."""
        return {
            "folder": self.folder,
            "strike": self.fault._asdict(),
            "part": self.stage,
            "codes": self.codes,
            "seconds": self.seconds,
            "problems": self.problems,
        }


def main() -> int:
    """Runs the command line; returns the exit code."""
    # The runs would inherit an ignored signal, such as SIGINT in the background of a shell.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="an empty folder")
    parser.add_argument("--kills", type=int, default=50, help="number of runs that faults end")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    parser.add_argument(
        "--images", type=pathlib.Path, help=".npz as in docs/own_data.md; default: digits"
    )
    parser.add_argument("--processes", type=int, default=1, help="processes of a run")
    parser.add_argument("changes", nargs="*", help="further flags of the run, after --")
    arguments = parser.parse_args()
    workdir = arguments.workdir.expanduser().absolute()
    if workdir.exists() and any(workdir.iterdir()):
        parser.error(f"--workdir must be an empty folder; {workdir} is not empty")
    job = make_job(arguments, workdir)
    starts = []
    for start in run_all(job, workdir, arguments.kills, random.Random(arguments.seed)):
        starts.append(start)
        what = f"{start.fault.kind} ({start.fault.moment}), {start.stage or 'ended before'}"
        line = f"{start.folder}: {what}; {start.codes}, {start.seconds} s"
        print("\n    WRONG: ".join([line, *start.problems]), flush=True)
    return conclude(starts, workdir, {"seed": arguments.seed, "command": job.command})


def make_job(arguments: Any, workdir: pathlib.Path) -> Job:
    """Returns the run that the command line describes."""
    images = arguments.images and arguments.images.expanduser().absolute()
    settings = SETTINGS.split() + ([f"data.path={images}", "data.name=arrays"] if images else [])
    changes, default = arguments.changes, "--config=configs/quickstart.py"
    configs = [change for change in changes if change.startswith("--config=")]
    flags = [f"--config.{setting}" for setting in settings]
    flags += [change for change in changes if change not in configs]
    command = [sys.executable, "-m", "remem_jax.main", *(configs or [default]), *flags]
    return Job(command, os.environ | {"REMEM_CACHE": str(workdir / "cache")}, arguments.processes)


def run_all(job: Job, workdir: pathlib.Path, kills: int, rng: random.Random) -> Iterator[Start]:
    """Yields the starts of an undisturbed run, then of runs with faults that are compared with it.

    It ends when faults have ended this many starts.
    """
    undisturbed, number = workdir / "undisturbed", 0
    start = run_once(job, undisturbed, NEVER, "000")
    yield start
    if any(start.codes):
        return
    for folder in (workdir / f"disturbed_{i}" for i in itertools.count(1)):
        finished = False
        while not finished:
            number += 1
            fault = draw(rng, job.processes) if kills > 0 else NEVER
            start = run_once(job, folder, fault, f"{number:03}")
            finished = not any(start.codes)
            start.problems.extend(differences(folder, undisturbed) if finished else ())
            yield start
            if fault is NEVER:
                return
            kills -= not finished
        if not start.problems:
            shutil.rmtree(folder)


def draw(rng: random.Random, processes: int) -> Fault:
    """Draws a random fault."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    (moment,) = rng.choices(list(MOMENTS), list(MOMENTS.values()))
    longest = {"start-up": 10.0, "saving": rng.choice((0.0, 0.3)), "any": 4.0}[moment]
    saves, process = rng.randint(1, 8), rng.randrange(processes)
    limit = int(2 ** rng.uniform(8, 26))  # From below the smallest result to above a teacher.
    return Fault(kind, moment, rng.uniform(0.0, longest), saves, process, limit)


def run_once(job: Job, folder: pathlib.Path, fault: Fault, name: str) -> Start:
    """Starts a run, injects a fault, and checks the outcome."""
    began, before = time.monotonic(), set(progress(folder))
    running = launch(job, folder)
    with futures.ThreadPoolExecutor(len(running)) as pool:
        try:
            outputs = [pool.submit(process.communicate) for process in running]
            reached = await_moment(fault, folder, running)
            stage = current_stage(folder, bool(set(progress(folder)) - before)) if reached else ""
            inject(fault, running[fault.process])
            late = reached and fault.kind == WRITES  # Writes may fail much later, or never.
            problems = await_exit(running, FINISH_SECONDS if late else EXIT_SECONDS)
        finally:
            for process in running:
                process.kill()
    texts = [output.result()[1] for output in outputs]
    codes = [process.returncode for process in running]
    log = folder.parent / "logs" / f"{name}_{fault.kind.replace(' ', '_')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n---- next process ----\n".join(texts))
    problems += check_exit(fault, reached, codes, texts) + damaged(folder)
    return Start(folder.name, fault, stage, codes, round(time.monotonic() - began, 1), problems)


def launch(job: Job, folder: pathlib.Path) -> list[Process]:
    """Starts the processes of a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{probe.getsockname()[1]}"
    shared = [coordinator, f"--processes={job.processes}"]
    flags_of_each = [[*shared, f"--process={i}"] for i in range(job.processes)]
    return [
        subprocess.Popen(
            [*job.command, f"--workdir={folder}", *(flags if job.processes > 1 else [])],
            cwd=pathlib.Path(__file__).parents[1],
            env=job.environment,
            text=True,
            errors="replace",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # The limit on file sizes would truncate a file.
            start_new_session=True,  # Ctrl-C reaches only this tool.
        )
        for flags in flags_of_each
    ]


def await_moment(fault: Fault, folder: pathlib.Path, running: list[Process]) -> bool:
    """Waits for the moment of a fault; returns False if a process exited before."""
    before, new = set(progress(folder)), set[tuple[str, int]]()
    until, due = time.monotonic() + FINISH_SECONDS, math.inf
    while time.monotonic() < min(until, due):
        if any(process.poll() is not None for process in running):
            return False
        new |= set(progress(folder)) - before
        saves = sum(".saving" in name for name, _ in new)
        begun = {"any": bool(new), "saving": saves >= fault.saves, "start-up": True}
        if due == math.inf and begun.get(fault.moment):
            due = time.monotonic() + fault.delay
        time.sleep(0.005)
    return True


def inject(fault: Fault, process: Process) -> None:
    """Injects a fault into a process, unless the process has just exited."""
    if fault.kind == WRITES:  # Python ignores SIGXFSZ, so that writes raise "File too large".
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (fault.limit, fault.limit))
    elif fault.kind != NOTHING:
        process.send_signal(signal.Signals[fault.kind])


def await_exit(running: list[Process], seconds: float) -> list[str]:
    """Waits until all processes have exited; kills and returns those that have not."""
    until, hanging = time.monotonic() + seconds, []
    for i, process in enumerate(running):
        try:
            process.wait(max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            hanging.append(f"process {i} had not exited after {seconds:.0f} s")
            process.kill()
    return hanging


def check_exit(fault: Fault, reached: bool, codes: list[int], texts: list[str]) -> list[str]:
    """Returns the problems with how the processes exited."""
    raised = [i for i, text in enumerate(texts) if "Traceback (most recent call last)" in text]
    problems = [f"process {i} shows a traceback: {_errors(texts[i])}" for i in raised]
    if not any(codes):
        return problems
    if not reached or fault.kind == NOTHING:
        return [*problems, f"the run exited with {codes} before a fault"]
    if 0 in codes:
        problems.append(f"some of its processes exited with 0: {codes}")
    code, text = codes[fault.process], texts[fault.process]
    # The process may be killed before it can print anything.
    silent = fault.kind == "SIGKILL" or fault.moment == "start-up"
    if fault.kind != WRITES and silent and code == -signal.Signals[fault.kind]:
        return problems
    lines = [line for line in text.splitlines() if line.startswith("remem_jax: ")]
    if code != 1 or len(lines) != 1:
        problems.append(f"it exited with {code} and {len(lines)} lines instead of 1 and one line")
    elif fault.kind != WRITES and "the same command" not in lines[0]:
        problems.append("its line does not say how to resume")
    return problems


def _errors(text: str) -> str:
    """Returns the last lines of all tracebacks, without duplicates."""
    errors = re.findall(r"^[\w.]+(?:Error|Exception|Interrupt)\b.{,90}", text, re.MULTILINE)
    return "; ".join(dict.fromkeys(errors))[:400]


def folders(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields all folders of a run except those inside checkpoints; the run may remove some."""
    for place, names, _ in os.walk(directory):
        yield from (pathlib.Path(place, name) for name in names)
        names[:] = [name for name in names if not COMPLETE.fullmatch(name) and "." not in name]


def progress(directory: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Yields checkpoint folders with their inodes, and the log with its size."""
    log = directory / "metrics.jsonl"
    if log.exists() and (size := log.stat().st_size):
        yield str(log), size
    for path in (path for path in folders(directory) if ".saving" in path.name):
        with contextlib.suppress(FileNotFoundError):
            yield str(path), path.stat().st_ino


def current_stage(directory: pathlib.Path, acts: bool) -> str:
    """Returns the stage that is training: a stage removes its checkpoints when it is done."""
    training = [path for path in folders(directory) if path.name == "checkpoints"]
    stage = training[0].relative_to(directory).parts[0] if training else "between"
    return stage if acts else "loading"


def damaged(directory: pathlib.Path) -> list[str]:
    """Returns the problems of checkpoint folders that should be complete."""
    paths = list(folders(directory))
    problems = [f"{path} was set aside" for path in paths if path.name.startswith("damaged-")]
    for path in (path for path in paths if COMPLETE.fullmatch(path.name)):
        try:
            checksums.check(path)
        except checksums.DamagedError as error:
            problems.append(str(error))
    return problems


def differences(directory: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """Returns how a finished run differs from the undisturbed one, and files that it left over."""
    problems = [
        f"{path} is left over"
        for path in sorted(directory.rglob("*"))
        if any(path.name.endswith(end) or f"{end}-" in path.name for end in TEMPORARY)
    ]
    both = (directory, expected)
    ours, theirs = (json.loads((path / "results.json").read_text()) for path in both)
    problems += [f"results.json: {name} differ" for name in SAME if ours[name] != theirs[name]]
    names = {path.name for run in both for path in (run / "selected").iterdir()}
    ours, theirs = ({name: content(run / "selected" / name) for name in names} for run in both)
    return problems + [f"selected/{name} differs" for name in names if ours[name] != theirs[name]]


def content(path: pathlib.Path) -> Any:
    """Returns the bytes of a file, those of a .safetensors header sorted: it has no fixed order."""
    data = path.read_bytes() if path.exists() else b""
    end = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    return sorted(data[:end]), data[end:]


def conclude(starts: list[Start], workdir: pathlib.Path, about: dict[str, Any]) -> int:
    """Prints and saves a summary of all starts; returns the exit code."""
    problems = [problem for start in starts for problem in start.problems]
    counts = collections.Counter(
        (start.fault.kind, start.stage) for start in starts if any(start.codes)
    )
    rows = [("", *STAGES), *((kind, *(counts[kind, stage] for stage in STAGES)) for kind in KINDS)]
    seconds = round(sum(start.seconds for start in starts))
    records = [start.record() for start in starts]
    summary = {**about, "seconds": seconds, "problems": problems, "table": rows, "starts": records}
    (workdir / "chaos.json").write_text(json.dumps(summary, indent=2) + "\n")
    table = (f"{kind:16}" + "".join(f"{cell:>10}" for cell in cells) for kind, *cells in rows)
    print("", *table, sep="\n")
    print(f"\n{len(starts)} starts in {seconds} s; the undisturbed run took {starts[0].seconds} s.")
    print(f"{len(problems)} problems.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
