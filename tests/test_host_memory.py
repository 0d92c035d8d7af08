"""Memory that a process keeps for its next step, as the kernel counts its page faults."""

import os
import subprocess
import sys

import pytest

# Large arrays, allocated and freed again and again, in a thread that starts later, as XLA's do.
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
    """What `keep_freed` says, and how many pages came from the kernel once memory was used."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept, int(count)


def is_glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, OSError, ValueError):
        return False


needs_glibc = pytest.mark.skipif(not is_glibc(), reason="Needs glibc.")


@needs_glibc
def test_on_a_cpu_what_is_freed_is_used_again() -> None:
    kept, count = faults(JAX_PLATFORMS="cpu")

    assert kept == "True"
    assert count < _PAGES / 10


@needs_glibc
@pytest.mark.parametrize(
    "setting",
    [
        {"JAX_PLATFORMS": "cuda,cpu"},  # The device's memory is what counts.
        {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "4"},
        {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_elsewhere_and_where_the_user_sets_it_nothing_is_changed(setting: dict[str, str]) -> None:
    kept, count = faults(**setting)

    assert kept == "False"
    assert count > _PAGES / 2
