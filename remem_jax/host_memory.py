"""Host memory: has the C library keep freed memory while JAX runs on the CPU."""

import ctypes
import os
import pkgutil
from importlib import metadata, util

import jax

# The settings of glibc's `mallopt`, with their values in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Makes glibc keep freed memory for later allocations, if JAX runs on the CPU.

    XLA allocates the activations of every step anew. By default, glibc gets large arrays from the
    kernel and returns them when they are freed, so every step pays for the page faults: 15 % of
    the time of a ResNet-18 step. After this call, the process keeps its peak memory until it ends.

    Call it before JAX initialises its backends; threads that exist already keep their own arenas.
    It changes nothing if the user has set MALLOC_* or malloc's GLIBC_TUNABLES, or if the C library
    is not glibc.

    Returns:
        True if glibc now keeps freed memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or _is_set_by_user() or not _computes_on_cpu():
        return False
    # Never use mmap for large arrays, use one arena for all threads, never trim it.
    return all(mallopt(*pair) for pair in ((_MMAP_MAX, 0), (_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1)))


def _is_set_by_user() -> bool:
    named = any(name.startswith("MALLOC_") for name in os.environ)
    return named or "malloc" in os.environ.get("GLIBC_TUNABLES", "")


def _computes_on_cpu() -> bool:
    """Whether JAX will run on the CPU: by its setting, or because no plugin is installed."""
    wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if wanted:
        return wanted.split(",")[0] == "cpu"
    plugins = util.find_spec("jax_plugins")
    return not (
        (plugins and list(pkgutil.iter_modules(plugins.submodule_search_locations)))
        or metadata.entry_points(group="jax_plugins")
        or util.find_spec("libtpu")
    )
