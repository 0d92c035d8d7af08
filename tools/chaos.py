"""Kills a run again and again, and checks that nothing is lost.

    python -m tools.chaos --workdir=/tmp/chaos --kills=50 --seed=0
    python -m tools.chaos --workdir=/tmp/chaos --images=mine.npz --processes=2
    python -m tools.chaos --workdir=/tmp/chaos -- --config.teacher.tuning=lora

A small but real ReMem run is done once undisturbed. Then it is started in another folder and
disturbed, again and again: by SIGKILL, SIGTERM or SIGINT, or by writes that fail from a size on, as
on a full disk; while it loads, while a checkpoint is written, or at any moment. A run that comes
to its end is compared with the undisturbed one, and another begun; the last is left to finish.

After every kill, what has a checkpoint's name must fit its checksums, and the run must have left
with its one line where it can, without a traceback. With --kills=0 two undisturbed runs are
compared. What the processes said is in logs/, all findings in chaos.json; folders of which
something is wrong stay, and the exit status is 1.
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
KINDS = {"SIGKILL": 45, "SIGTERM": 20, "SIGINT": 15, WRITES: 20}  # In a hundred.
MOMENTS = {"start-up": 10, "saving": 40, "any": 50}
PARTS = ("loading", "teachers", "students", "between")
WHOLE = re.compile("[0-9]+|params|student_[0-9]+")  # Names that folders get when they are whole.
LEFT = (".partial", ".saving", ".old", ".orbax-checkpoint-tmp")
Process = subprocess.Popen[str]
SAME = ("methods", "teachers", "students", "data", "models")  # Of results.json.
# After a strike, for all processes: they may compile, or wait for one that never joined them.
LEAVE_SECONDS = distributed.JOIN_SECONDS + 150.0
FINISH_SECONDS = 3600.0


class Job(NamedTuple):
    """How a run is started, but for its folder."""

    command: list[str]
    environment: dict[str, str]
    processes: int


class Strike(NamedTuple):
    """How a start is disturbed."""

    kind: str  # In `KINDS`, or `NOTHING`.
    moment: str  # In `MOMENTS`, or "never".
    delay: float = 0.0  # Seconds from the start, or from what the moment waits for.
    saves: int = 1  # How many folders of checkpoints have to appear, for "saving".
    process: int = 0
    limit: int = 0  # Bytes of a file from which on writes fail.


NEVER = Strike(NOTHING, "never")


class Start(NamedTuple):
    """What came of a start; `part` is what the run was doing when struck, or empty."""

    folder: str
    strike: Strike
    part: str
    codes: list[int]
    seconds: float
    problems: list[str]


def main() -> int:
    """Runs the command line; returns the exit code."""
    # Where it is ignored, as in a shell's background, the runs would ignore it too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of this test")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", type=pathlib.Path, help=".npz, of docs/own_data.md; else digits"
    )
    parser.add_argument("--processes", type=int, default=1, help="of one run, on this machine")
    parser.add_argument("changes", nargs="*", help="after --: more flags of the run")
    arguments = parser.parse_args()
    workdir = arguments.workdir.expanduser().absolute()
    if workdir.exists() and any(workdir.iterdir()):
        parser.error(f"{workdir} is not empty")
    job = make_job(arguments, workdir)
    starts = []
    for start in torment(job, workdir, arguments.kills, random.Random(arguments.seed)):
        starts.append(start)
        what = f"{start.strike.kind} ({start.strike.moment}), {start.part or 'ended before'}"
        line = f"{start.folder}: {what}; {start.codes}, {start.seconds} s"
        print("\n    WRONG: ".join([line, *start.problems]), flush=True)
    return conclude(starts, workdir, {"seed": arguments.seed, "command": job.command})


def make_job(arguments: Any, workdir: pathlib.Path) -> Job:
    """The run that the command line asks for."""
    images = arguments.images and arguments.images.expanduser().absolute()
    settings = SETTINGS.split() + ([f"data.path={images}", "data.name=arrays"] if images else [])
    changes, default = arguments.changes, "--config=configs/quickstart.py"
    named = [change for change in changes if change.startswith("--config=")]
    flags = [f"--config.{setting}" for setting in settings]
    flags += [change for change in changes if change not in named]
    command = [sys.executable, "-m", "remem_jax.main", *(named or [default]), *flags]
    return Job(command, os.environ | {"REMEM_CACHE": str(workdir / "cache")}, arguments.processes)


def torment(job: Job, workdir: pathlib.Path, kills: int, rng: random.Random) -> Iterator[Start]:
    """An undisturbed run, then disturbed ones, compared with it, until there were enough kills."""
    undisturbed, number = workdir / "undisturbed", 0
    start = disturb(job, undisturbed, NEVER, "000")
    yield start
    if any(start.codes):
        return
    for folder in (workdir / f"disturbed_{i}" for i in itertools.count(1)):
        finished = False
        while not finished:
            number += 1
            strike = draw(rng, job.processes) if kills > 0 else NEVER
            start = disturb(job, folder, strike, f"{number:03}")
            finished = not any(start.codes)
            start.problems.extend(differences(folder, undisturbed) if finished else ())
            yield start
            if strike is NEVER:
                return
            kills -= not finished
        if not start.problems:
            shutil.rmtree(folder)


def draw(rng: random.Random, processes: int) -> Strike:
    """A strike at random."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    (moment,) = rng.choices(list(MOMENTS), list(MOMENTS.values()))
    longest = {"start-up": 10.0, "saving": rng.choice((0.0, 0.3)), "any": 4.0}[moment]
    saves, process = rng.randint(1, 8), rng.randrange(processes)
    limit = int(2 ** rng.uniform(8, 26))  # From less than any result to more than a teacher.
    return Strike(kind, moment, rng.uniform(0.0, longest), saves, process, limit)


def disturb(job: Job, folder: pathlib.Path, strike: Strike, name: str) -> Start:
    """Starts a run, strikes, and looks at what came of it."""
    began, before = time.monotonic(), set(signs(folder))
    running = launch(job, folder)
    with futures.ThreadPoolExecutor(len(running)) as pool:
        try:
            said = [pool.submit(process.communicate) for process in running]
            struck = await_moment(strike, folder, running)
            part = doing(folder, bool(set(signs(folder)) - before)) if struck else ""
            hit(strike, running[strike.process])
            late = struck and strike.kind == WRITES  # They may fail much later, or never.
            problems = leave(running, FINISH_SECONDS if late else LEAVE_SECONDS)
        finally:
            for process in running:
                process.kill()
    texts, codes = [one.result()[1] for one in said], [one.returncode for one in running]
    log = folder.parent / "logs" / f"{name}_{strike.kind.replace(' ', '_')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n---- next process ----\n".join(texts))
    problems += judge(strike, struck, codes, texts) + damaged(folder)
    return Start(folder.name, strike, part, codes, round(time.monotonic() - began, 1), problems)


def launch(job: Job, folder: pathlib.Path) -> list[Process]:
    """Starts the processes of a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{probe.getsockname()[1]}"
    several = [coordinator, f"--processes={job.processes}"]
    own = [[*several, f"--process={i}"] for i in range(job.processes)]
    return [
        subprocess.Popen(
            [*job.command, f"--workdir={folder}", *(flags if job.processes > 1 else [])],
            cwd=pathlib.Path(__file__).parents[1],
            env=job.environment,
            text=True,
            errors="replace",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # A file would be cut by the limit on files.
            start_new_session=True,  # Ctrl-C is for this tool.
        )
        for flags in own
    ]


def await_moment(strike: Strike, folder: pathlib.Path, running: list[Process]) -> bool:
    """Waits for the moment of a strike; False if a process ended before."""
    before, seen = set(signs(folder)), set[tuple[str, int]]()
    until, due = time.monotonic() + FINISH_SECONDS, math.inf
    while time.monotonic() < min(until, due):
        if any(process.poll() is not None for process in running):
            return False
        seen |= set(signs(folder)) - before
        saves = sum(".saving" in name for name, _ in seen)
        acts = {"any": bool(seen), "saving": saves >= strike.saves, "start-up": True}
        if due == math.inf and acts.get(strike.moment):
            due = time.monotonic() + strike.delay
        time.sleep(0.005)
    return True


def hit(strike: Strike, process: Process) -> None:
    """Strikes a process; of one that has just ended nothing is left to strike."""
    if strike.kind == WRITES:  # Python ignores SIGXFSZ; the system says "File too large".
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (strike.limit, strike.limit))
    elif strike.kind != NOTHING:
        process.send_signal(signal.Signals[strike.kind])


def leave(running: list[Process], seconds: float) -> list[str]:
    """Waits until all processes have left; says who did not, and was killed."""
    until, hanging = time.monotonic() + seconds, []
    for i, process in enumerate(running):
        try:
            process.wait(max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            hanging.append(f"process {i} had not left after {seconds:.0f} s")
            process.kill()
    return hanging


def judge(strike: Strike, struck: bool, codes: list[int], said: list[str]) -> list[str]:
    """What is wrong with how the processes left."""
    fell = [i for i, text in enumerate(said) if "Traceback (most recent call last)" in text]
    problems = [f"process {i} shows a traceback: {_errors(said[i])}" for i in fell]
    if not any(codes):
        return problems
    if not struck or strike.kind == NOTHING:
        return [*problems, f"it ended with {codes} before anything was done to it"]
    if 0 in codes:
        problems.append(f"of its processes some ended well: {codes}")
    code, text = codes[strike.process], said[strike.process]
    silent = strike.kind == "SIGKILL" or strike.moment == "start-up"  # Before it can say anything.
    if strike.kind != WRITES and silent and code == -signal.Signals[strike.kind]:
        return problems
    told = [line for line in text.splitlines() if line.startswith("remem_jax: ")]
    if code != 1 or len(told) != 1:
        problems.append(f"it left with {code} and {len(told)} lines of its own instead of 1 and 1")
    elif strike.kind != WRITES and "the same command" not in told[0]:
        problems.append("it does not say how to go on")
    return problems


def _errors(text: str) -> str:
    """What tracebacks end with, each once."""
    found = re.findall(r"^[\w.]+(?:Error|Exception|Interrupt)\b.{,90}", text, re.MULTILINE)
    return "; ".join(dict.fromkeys(found))[:400]


def folders(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """All folders of a run, without what is in its checkpoints; some may be gone by now."""
    for place, names, _ in os.walk(directory):
        yield from (pathlib.Path(place, name) for name in names)
        names[:] = [name for name in names if not WHOLE.fullmatch(name) and "." not in name]


def signs(directory: pathlib.Path) -> Iterator[tuple[str, int]]:
    """What a run makes: folders of checkpoints, by name and inode, and the log, by its size."""
    log = directory / "metrics.jsonl"
    if log.exists() and (size := log.stat().st_size):
        yield str(log), size
    for path in (path for path in folders(directory) if ".saving" in path.name):
        with contextlib.suppress(FileNotFoundError):
            yield str(path), path.stat().st_ino


def doing(directory: pathlib.Path, acts: bool) -> str:
    """The part of the run that trains, by its checkpoints, which go when it is done."""
    training = [path for path in folders(directory) if path.name == "checkpoints"]
    found = training[0].relative_to(directory).parts[0] if training else "between"
    return found if acts else "loading"


def damaged(directory: pathlib.Path) -> list[str]:
    """Folders that have their name, and are not whole."""
    paths = list(folders(directory))
    problems = [f"{path} was set aside" for path in paths if path.name.startswith("damaged-")]
    for path in (path for path in paths if WHOLE.fullmatch(path.name)):
        try:
            checksums.check(path)
        except checksums.DamagedError as error:
            problems.append(str(error))
    return problems


def differences(directory: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """How a finished run differs from the undisturbed one, and what it left."""
    problems = [
        f"{path} is left over"
        for path in sorted(directory.rglob("*"))
        if any(path.name.endswith(end) or f"{end}-" in path.name for end in LEFT)
    ]
    both = (directory, expected)
    ours, theirs = (json.loads((path / "results.json").read_text()) for path in both)
    problems += [f"results.json: other {name}" for name in SAME if ours[name] != theirs[name]]
    names = {path.name for one in both for path in (one / "selected").iterdir()}
    ours, theirs = ({name: content(one / "selected" / name) for name in names} for one in both)
    return problems + [f"selected/{name} differs" for name in names if ours[name] != theirs[name]]


def content(path: pathlib.Path) -> Any:
    """The bytes of a file; the header of a .safetensors has its entries in no order."""
    read = path.read_bytes() if path.exists() else b""
    end = 8 + int.from_bytes(read[:8], "little") if path.suffix == ".safetensors" else 0
    return sorted(read[:end]), read[end:]


def conclude(starts: list[Start], workdir: pathlib.Path, about: dict[str, Any]) -> int:
    """Prints and writes what all starts came to; the exit code."""
    problems = [problem for start in starts for problem in start.problems]
    counts = collections.Counter((one.strike.kind, one.part) for one in starts if any(one.codes))
    rows = [("", *PARTS), *((kind, *(counts[kind, part] for part in PARTS)) for kind in KINDS)]
    seconds = round(sum(start.seconds for start in starts))
    listed = [{**one._asdict(), "strike": one.strike._asdict()} for one in starts]
    found = {**about, "seconds": seconds, "problems": problems, "table": rows, "starts": listed}
    (workdir / "chaos.json").write_text(json.dumps(found, indent=2) + "\n")
    table = (f"{kind:16}" + "".join(f"{cell:>10}" for cell in cells) for kind, *cells in rows)
    print("", *table, sep="\n")
    print(f"\n{len(starts)} starts, {seconds} s; the first, undisturbed, {starts[0].seconds} s.")
    print(f"{len(problems)} things were wrong.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
