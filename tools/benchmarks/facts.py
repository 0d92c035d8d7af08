"""Facts that benchmark figures depend on besides the code: machine, load, versions, date."""

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
_SWITCHES = ("JAX_", "XLA_", "OMP_", "TORCH")  # Prefixes of variables that change figures.


def collect() -> dict[str, Any]:
    """Returns facts about this machine as JSON values, without importing other libraries."""
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
    """Returns the devices that JAX finds; call it in a child process, since JAX then holds them."""
    import jax

    return {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }


def line(facts: dict[str, Any]) -> str:
    """Returns the facts as one line."""
    versions = [f"{name} {version}" for name, version in facts["versions"].items() if version]
    load = " ".join(f"{average:.2f}" for average in facts["load_before"])
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
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Returns name, memory and driver of each GPU, from nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []
