"""Freed memory is kept for the next step, according to the kernel's count of page faults."""

import os
import subprocess
import sys

import pytest

# Allocates and frees large arrays repeatedly, in a thread that starts later, like XLA's.
_PROGRAM = """
import ctypes, resource, threading
from remem_jax import host_memory

malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.argtypes = [ctypes.c_void_p]

def allocate():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        array = malloc(2**25)
        ctypes.memset(array, 1, 2**25)
        free(array)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults = []
print(host_memory.keep_freed())
for _ in range(2):
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
print(faults[1])
"""
_PAGES = 10 * 2**25 // 4096


def faults(**environment: str) -> tuple[str, int]:
    """Returns the output of `keep_freed`, and the page faults once memory was used."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    keeps_freed, count = done.stdout.split()
    return keeps_freed, int(count)


def is_glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, OSError, ValueError):
        return False


needs_glibc = pytest.mark.skipif(not is_glibc(), reason="Needs glibc.")


@needs_glibc
def test_on_a_cpu_freed_memory_is_reused() -> None:
    keeps_freed, count = faults(JAX_PLATFORMS="cpu")

    assert keeps_freed == "True"
    assert count < _PAGES / 10


@needs_glibc
@pytest.mark.parametrize(
    "setting",
    [
        {"JAX_PLATFORMS": "cuda,cpu"},  # Activations are in the device's memory.
        {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "4"},
        {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_other_devices_and_user_settings_are_left_alone(setting: dict[str, str]) -> None:
    keeps_freed, count = faults(**setting)

    assert keeps_freed == "False"
    assert count > _PAGES / 2
