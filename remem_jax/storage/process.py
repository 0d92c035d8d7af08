"""Which process holds something, and whether it lives, as far as another can tell."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any


def this() -> dict[str, Any]:
    """This process, so that others on this machine can tell whether it lives."""
    pid = os.getpid()
    return {"host": os.uname().nodename, "pid": pid, "start": started(pid), "space": space()}


def space() -> str | None:
    """Of what numbers of processes are unique in: a boot and, as for containers, a namespace."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {pathlib.Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def started(pid: int) -> str | None:
    """When a process started, since numbers are used again; None if it cannot be told."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # The name before it may hold anything.
    return "dead" if fields[0] in "ZX" else fields[19]  # A zombie waits for its parent.


def is_alive(worker: Mapping[str, Any]) -> bool:
    """Whether a worker is known to live; False also where it cannot be told."""
    return _is_of_here(worker) and not has_died(worker)


def has_died(worker: Mapping[str, Any]) -> bool:
    """Whether a worker is known to be no more; False also where it cannot be told."""
    if not _is_of_here(worker):
        return False
    try:
        os.kill(worker["pid"], 0)  # Tells of others' processes too, where /proc hides them.
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return started(worker["pid"]) not in (None, worker["start"])


def _is_of_here(worker: Mapping[str, Any]) -> bool:
    """Whether its number is one of this machine's and container's, since they started."""
    here = {"host": os.uname().nodename, "space": space()}
    return here["space"] is not None and all(worker[name] == here[name] for name in here)
