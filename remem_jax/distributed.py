"""Joins several processes into one run, or finds that they are separate workers of a study.

JAX finds Slurm, Open MPI and TPU pods by itself. This module checks in advance what JAX does not
report: JAX aborts the process if the coordinator cannot be reached in time, and shares a port that
is in use.
"""

import contextlib
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from absl import logging

from remem_jax import display
from remem_jax.checks import SettingError, require

JOIN_SECONDS = 300  # JAX's default; the hosts of a queue do not all start at once.
HEARTBEAT_SECONDS = 60  # JAX's default is 100; the other processes keep their devices until then.
# Time that a finished process waits for the others, one of which may be writing a report.
_END_SECONDS = 1800
_POD = "TPU pod"
_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # The variables JAX reads.

# What the processes are that a launcher starts for a study.
WORKERS = ("auto", "joined", "separate")


class Launched(NamedTuple):
    """A process that a launcher started together with others.

    Attributes:
        launcher: "Slurm", "Open MPI" or "TPU pod".
        process: Its index, from 0.
        processes: Number of processes.
        on_host: Number of processes on this host.
        hosts: Number of hosts.
    """

    launcher: str
    process: int
    processes: int
    on_host: int
    hosts: int


def separate_workers(workers: str, *, is_study: bool, given: bool) -> Launched | None:
    """Decides whether the processes of a launcher are separate workers of a study.

    Args:
        workers: One of `WORKERS`. "auto" separates the processes of a study that srun or mpirun
            started: trials are independent, so separate workers finish more of them. On a TPU pod,
            whose hosts can only be used together, they are joined.
        is_study: Whether the command is a study.
        given: Whether `initialize` gets arguments, which join processes.

    Returns:
        This process, if it is a worker of its own and there are others; None if `initialize` should
        join the processes, if there are any.

    Raises:
        SettingError: If `workers` contradicts the rest, if the launcher's variables contradict each
            other, or if separate workers would use the same GPUs.
    """
    if workers == "separate":
        require(
            is_study,
            "--workers=separate is for studies: the processes of a run train the same models, so "
            "leave it out, or start each run with its own command and --workdir.",
        )
        require(
            not given,
            "--workers=separate does not go with --coordinator, --processes and --process, which "
            "join processes: leave them out, or set --workers=joined.",
        )
    launched = find_launcher()
    if not is_study or launched is None or given or workers == "joined":
        return None
    if launched.launcher == _POD:
        require(
            workers == "auto",
            "--workers=separate cannot be used on a TPU pod, whose hosts compute together: leave "
            "it out, and start one study on each TPU slice.",
        )
        return None
    _require_own_gpus(launched)
    return launched


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    join_seconds: float = JOIN_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the processes of a run; must be called before anything asks for a device.

    Without arguments these are the processes that srun, Open MPI's mpirun or a TPU pod started.
    Without any of these, with a single process, or if the run has been joined already, nothing
    happens. Under srun and mpirun, JAX gives each process one GPU, by its number on its host; with
    arguments, all of them. JAX_LOCAL_DEVICE_IDS=0,1,2,3 overrides this.

    From then on, a process that is killed ends the others: immediately if it was the first, else
    after `heartbeat_seconds` without a heartbeat. They report that a task died, and abort.

    Args:
        coordinator: host:port of the first process.
        processes: Number of processes.
        process: Index of this process, from 0.
        join_seconds: Maximum time to wait for the others.
        heartbeat_seconds: Maximum time without a heartbeat of one of them.

    Raises:
        SettingError: If only some of the arguments are given, or they are invalid; if another
            program uses the port, or nothing listens there in time. If other processes do not
            come in time, this one exits with a line on stderr, because JAX would abort it.
    """
    if jax.distributed.is_initialized() or processes == 1:
        return
    options: dict[str, Any] = {}
    if coordinator is None and processes is None and process is None:
        if find_launcher() is None:
            return
        joining = "the processes of the launcher"
    else:
        if coordinator is None or processes is None or process is None:
            raise SettingError(
                "coordinator, processes and process go together: set all, or none under srun, "
                f"under mpirun or on a TPU pod; got {coordinator}, {processes} and {process}."
            )
        _check_address(coordinator, processes, process)
        _await_port(coordinator, process, join_seconds)
        joining = f"the {processes} processes of {coordinator}"
        options = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    logging.info("Joining %s, for at most %s.", joining, display.duration(join_seconds))
    late = (
        f"remem_jax: {joining} did not all come within {join_seconds} seconds: start each with "
        "the same coordinator and processes, and another process from 0; see the messages of the "
        "others."
    )
    with _time_limit(join_seconds, late):
        try:
            jax.distributed.initialize(
                **options,
                initialization_timeout=int(join_seconds) + 60,  # Ours expires first.
                heartbeat_timeout_seconds=heartbeat_seconds,
                shutdown_timeout_seconds=_END_SECONDS,
            )
        except (RuntimeError, ValueError) as error:
            raise SettingError(f"{joining} cannot be joined: {error}".replace("\n", " ")) from error


def abandon(message: str, code: int) -> None:
    """Exits with a message on stderr and an exit code, if this process is one of several.

    Call it if this process cannot continue: JAX would wait for the others, and they for this one.
    """
    if jax.distributed.is_initialized():
        sys.stderr.write(f"{message}\n")
        _exit(code)


def find_launcher() -> Launched | None:
    """Returns this process, if a launcher that JAX knows started it together with others.

    Raises:
        SettingError: If the launcher's variables do not say how many processes there are, or where.
    """
    environment = os.environ
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return _of_open_mpi()
    if all(f"SLURM_{name}" in environment for name in _SLURM):
        return _of_slurm()
    # JAX sets this when it is imported on a TPU, and then finds out whether there is a pod.
    return Launched(_POD, 0, 0, 1, 0) if "TPU_ML_PLATFORM" in environment else None


def _of_open_mpi() -> Launched:
    require(
        "OMPI_MCA_orte_hnp_uri" in os.environ,
        "This Open MPI does not tell where the first process is: set coordinator, processes "
        "and process (it is OMPI_COMM_WORLD_RANK).",
    )
    size, rank, on_host = (
        int(os.environ.get(f"OMPI_COMM_WORLD_{name}", default))
        for name, default in (("SIZE", 1), ("RANK", 0), ("LOCAL_SIZE", 1))
    )
    return Launched("Open MPI", rank, size, on_host, -(-size // on_host))


def _of_slurm() -> Launched | None:
    variables = {name: os.environ[f"SLURM_{name}"] for name in _SLURM}
    # An interactive step of an allocation for several tasks has a single one.
    of_step = os.environ.get("SLURM_STEP_NUM_TASKS", variables["NTASKS"])
    if of_step == "1":
        return None
    require(
        of_step == variables["NTASKS"],
        f"Slurm's variables contradict each other: SLURM_NTASKS is {variables['NTASKS']}, but "
        f"SLURM_STEP_NUM_TASKS is {of_step}. Give srun the number of tasks (srun --ntasks="
        f"{of_step} ...).",
    )
    tasks = int(variables["NTASKS"])
    hosts = int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", 1)))
    # Such as "4(x2),3": four on each of the first two hosts, three on the next.
    per_host = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(-(-tasks // hosts)))
    on_host = max(int(part.partition("(")[0]) for part in per_host.split(","))
    return Launched("Slurm", int(variables["PROCID"]), tasks, on_host, hosts)


def _require_own_gpus(launched: Launched) -> None:
    """Raises if several processes of this host see the same GPUs, as far as variables tell."""
    if launched.on_host == 1 or os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = len([*pathlib.Path("/dev").glob("nvidia[0-9]*")])
    else:
        gpus = len([name for name in visible.split(",") if name])
    require(
        gpus <= 1 or "SLURM_GPUS_PER_TASK" in os.environ,
        f"{launched.launcher} started {launched.on_host} workers on this host, each of which sees "
        f"{gpus} GPUs: give each its own (srun --gpus-per-task=1, or CUDA_VISIBLE_DEVICES), or set "
        "--workers=joined for one worker of all processes.",
    )


def _check_address(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        f"coordinator must be host:port, such as 10.0.0.1:8476, got {coordinator!r}.",
    )
    require(
        0 <= process < processes,
        f"process must be from 0 to {processes - 1}, one less than processes, got {process}.",
    )


def _await_port(coordinator: str, process: int, seconds: float) -> None:
    """Raises unless the first process can use the port, or another one reaches it in time."""
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        # JAX would share the port with the program that uses it.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise SettingError(
                    f"Port {port} of coordinator cannot be used ({error.strerror}): set another."
                ) from error
        return
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise SettingError(
                    f"Nothing answers at {coordinator} after {seconds} seconds ({error}): start "
                    "process 0 on that host, or set coordinator to where it runs."
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _time_limit(seconds: float, message: str) -> Iterator[None]:
    """Exits with a message on stderr if the block takes longer."""

    def end() -> None:
        sys.stderr.write(f"{message}\n")
        _exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
