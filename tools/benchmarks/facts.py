"""What a figure depends on besides the code: machine, load, versions, date."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
from typing import Any

_LIBRARIES = ("jax", "jaxlib", "torch", "timm")
_SWITCHES = ("JAX_", "XLA_", "OMP_", "TORCH")  # Beginnings of the variables that change figures.


def collect() -> dict[str, Any]:
    """Facts of this machine as JSON has them; asks no library for anything."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _LIBRARIES},
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_SWITCHES)},
        "gpus": _gpus(),
    }


def devices() -> dict[str, Any]:
    """What JAX finds; it then holds these devices, so a process of its own should ask."""
    import jax

    return {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }


def line(facts: dict[str, Any]) -> str:
    """The facts in one line."""
    versions = [f"{name} {found}" for name, found in facts["versions"].items() if found]
    load = " ".join(f"{one:.2f}" for one in facts["load_before"])
    parts = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB",
        *facts["gpus"],
        f"load before {load}",
        ", ".join(versions),
        *(f"{name}={value}" for name, value in facts["environment"].items()),
        facts["date"],
    ]
    return "; ".join(parts)


def _cpu() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Name, memory and driver of each, as NVIDIA's tool says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True)
    return said.stdout.splitlines() if said.returncode == 0 else []
