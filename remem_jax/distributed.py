"""Joins several processes into one run.

JAX finds Slurm, Open MPI and TPU pods by itself. This module checks in advance what JAX does not
report: JAX aborts the process if the coordinator cannot be reached in time, and shares a port that
is in use.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from remem_jax import display, launchers
from remem_jax.checks import SettingError, require

JOIN_SECONDS = 300  # JAX's default; the hosts of a queue do not all start at once.
HEARTBEAT_SECONDS = 60  # JAX's default is 100; the other processes keep their devices until then.
# Time that a finished process waits for the others, one of which may be writing a report.
_END_SECONDS = 1800


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
    happens. Under srun and mpirun, JAX gives each process one GPU, by its number on its host,
    unless Slurm gave the process GPUs that no other one sees; with arguments, all of them.
    JAX_LOCAL_DEVICE_IDS=0,1,2,3 overrides this.

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
        launched = launchers.find()
        if launched is None:
            return
        options = launchers.own_gpus(launched)
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
