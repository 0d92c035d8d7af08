"""How the C library hands out the host's memory where the CPU computes."""

import ctypes
import os
import pkgutil
from importlib import metadata, util

import jax

# The settings of glibc's `mallopt`, with their values in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Has glibc keep what is freed for what is allocated next, where JAX computes on the CPU.

    XLA allocates the activations of a step anew for every step. glibc takes arrays of their size
    from the kernel and gives them back when they are freed, so that each step waits until the
    kernel has cleared every page that it touches: 15 % of a ResNet-18's step. Afterwards the
    process holds the most that it has ever needed until it ends.

    To be called before JAX looks for devices: threads that start earlier allocate apart. What the
    user sets (MALLOC_*, GLIBC_TUNABLES) wins; other C libraries are left as they are.

    Returns:
        Whether it does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or _is_set_by_user() or not _computes_on_cpu():
        return False
    # No arrays that are mapped apart, one heap for all threads, and no part of it given back.
    return all(mallopt(*pair) for pair in ((_MMAP_MAX, 0), (_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1)))


def _is_set_by_user() -> bool:
    named = any(name.startswith("MALLOC_") for name in os.environ)
    return named or "malloc" in os.environ.get("GLIBC_TUNABLES", "")


def _computes_on_cpu() -> bool:
    """Whether JAX will choose the CPU; where it has no plugin, there is nothing else."""
    wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if wanted:
        return wanted.split(",")[0] == "cpu"
    plugins = util.find_spec("jax_plugins")
    return not (
        (plugins and list(pkgutil.iter_modules(plugins.submodule_search_locations)))
        or metadata.entry_points(group="jax_plugins")
        or util.find_spec("libtpu")
    )
