"""Slurm's commands on one machine, for tests of batch scripts.

python fake_slurm.py sbatch|srun|scontrol ARGUMENTS...

`sbatch` runs a script once for each task of the array, and again when `scontrol requeue` has asked
for it. `srun` runs a command in as many processes as the script's #SBATCH lines ask for, with the
variables that Slurm sets, and forwards signals to them. FAKE_SLURM is a folder for the jobs' state.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

STATE = pathlib.Path(os.environ["FAKE_SLURM"])
FIRST_JOB = 4000


def install(folder: pathlib.Path) -> None:
    """Writes the commands into a folder, for PATH."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(0o755)


def sbatch(arguments: list[str]) -> int:
    """Runs a script to its end, for each task of the array; returns the largest exit code."""
    array = [each for each in arguments if each.startswith("--array=")]
    first, _, last = array[0].removeprefix("--array=").partition("-") if array else ("0", "", "0")
    script, *rest = [each for each in arguments if each not in array]
    jobs = range(int(first), int(last or first) + 1)
    running = {index: _start(script, rest, index, 0) for index in jobs}
    restarts, codes = dict.fromkeys(jobs, 0), []
    while running:
        for index, process in [*running.items()]:
            code = process.poll()
            if code is None:
                continue
            if (STATE / f"requeue-{FIRST_JOB + index}").exists():
                (STATE / f"requeue-{FIRST_JOB + index}").unlink()
                restarts[index] += 1
                running[index] = _start(script, rest, index, restarts[index])
            else:
                codes.append(code)
                del running[index]
        time.sleep(0.02)
    return max(codes)


def _start(script: str, arguments: list[str], index: int, restarts: int) -> subprocess.Popen[bytes]:
    text = pathlib.Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    nodes, each = int(options.get("nodes", 1)), int(options.get("ntasks-per-node", 1))
    variables = {
        "SLURM_JOB_ID": FIRST_JOB + index,
        "SLURM_ARRAY_TASK_ID": index,
        "SLURM_RESTART_COUNT": restarts,
        "SLURM_NTASKS": int(options.get("ntasks", nodes * each)),
        "SLURM_NNODES": nodes,
        "SLURM_GPUS_PER_TASK": options["gpus-per-task"],
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
    }
    values = {name: str(value) for name, value in variables.items()}
    return subprocess.Popen(["bash", script, *arguments], env=os.environ | values)


def srun(command: list[str]) -> int:
    """Runs a command in all tasks of the job; returns the largest exit code, as Slurm's does."""
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        # Since version 22.05, a step has not that of its job.
        "SLURM_CPUS_PER_TASK": os.environ.get("SRUN_CPUS_PER_TASK", "1"),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": f"{tasks // nodes}(x{nodes})" if nodes > 1 else str(tasks),
    }
    running = []

    def forward(number: int, frame: object) -> None:
        del frame
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    for i in range(tasks):
        own = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % (tasks // nodes))}
        running.append(subprocess.Popen(command, env=os.environ | step | own))
    (STATE / f"srun-{os.environ['SLURM_JOB_ID']}").write_text(str(os.getpid()))
    codes = [process.wait() for process in running]
    return max(128 - code if code < 0 else code for code in codes)


def scontrol(arguments: list[str]) -> int:
    """Asks for a job to be run again."""
    verb, job = arguments
    assert verb == "requeue"
    (STATE / f"requeue-{job}").touch()
    return 0


if __name__ == "__main__":
    _, name, *rest = sys.argv
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[name](rest))
