"""Identifies processes, and checks whether they are alive."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any


def this() -> dict[str, Any]:
    """Describes this process, so that others on this machine can check whether it is alive."""
    pid = os.getpid()
    return {"host": os.uname().nodename, "pid": pid, "start": started(pid), "space": space()}


def space() -> str | None:
    """Returns the scope in which process ids are unique: a boot and a (container's) namespace."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {pathlib.Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def started(pid: int) -> str | None:
    """Returns when a process started, because ids are reused; None if it is unknown."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # The name before it may contain anything.
    return "dead" if fields[0] in "ZX" else fields[19]  # A zombie waits for its parent.


def is_alive(worker: Mapping[str, Any]) -> bool:
    """Returns whether a worker is known to be alive; False if that is unknown."""
    return _is_local(worker) and not has_died(worker)


def has_died(worker: Mapping[str, Any]) -> bool:
    """Returns whether a worker is known to be dead; False if that is unknown."""
    if not _is_local(worker):
        return False
    try:
        os.kill(worker["pid"], 0)  # Works for other users' processes too, which /proc may hide.
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return started(worker["pid"]) not in (None, worker["start"])


def _is_local(worker: Mapping[str, Any]) -> bool:
    """Returns whether a worker's id belongs to this boot and container of this machine."""
    local = {"host": os.uname().nodename, "space": space()}
    return local["space"] is not None and all(worker[name] == local[name] for name in local)
