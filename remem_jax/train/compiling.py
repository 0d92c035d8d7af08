"""The cache of compiled functions on disk, and counts of compilations for the log."""

import contextlib
import os
import pathlib
import warnings
import zlib
from typing import NamedTuple

import jax
from absl import logging
from jax import monitoring

_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"
_SECONDS = "/jax/core/compile/backend_compile_duration"
_ZLIB = b"\x78"  # First byte of zlib's output.


class Compiled(NamedTuple):
    """Counts of compilations.

    Attributes:
        made: Functions that were compiled.
        found: Functions that were in the cache.
        seconds: Time spent on both.
    """

    made: int = 0
    found: int = 0
    seconds: float = 0.0


class Counter:
    """Counts JAX's compilations from its creation on; create one per process."""

    def __init__(self) -> None:
        """Starts counting."""
        self._sum = Compiled()
        monitoring.register_event_listener(self._event)
        monitoring.register_event_duration_secs_listener(self._duration)

    def read(self) -> Compiled:
        """Returns the compilations since the last call."""
        compiled, self._sum = self._sum, Compiled()
        return compiled

    def _event(self, event: str, **_: str | int) -> None:
        if event == _HIT:
            self._sum = self._sum._replace(found=self._sum.found + 1)
        elif event == _MISS:
            self._sum = self._sum._replace(made=self._sum.made + 1)

    def _duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _SECONDS:
            self._sum = self._sum._replace(seconds=self._sum.seconds + duration_secs)


def keep(folder: pathlib.Path) -> None:
    """Caches compiled functions in a folder, unless the user has set another one in JAX.

    If the folder is not writable, a warning is logged, and existing entries are still used.
    """
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is not None:
        return
    try:
        _remove_truncated(folder)
    except OSError as error:
        logging.warning(
            "Compiled functions cannot be kept in %s (%s) and are compiled at every start; set "
            "REMEM_CACHE to a folder that can be written.",
            folder,
            error.strerror,
        )
        # JAX would log the same for each function.
        message = "Error (reading|writing) persistent compilation cache entry"
        warnings.filterwarnings("ignore", message, UserWarning)
    if os.access(folder, os.R_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A run has many small functions and may start many times, so all of them are cached.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _remove_truncated(folder: pathlib.Path) -> None:
    """Removes truncated entries, left by a kill or a full disk; JAX would warn at every start.

    JAX neither writes to a temporary file first nor overwrites an entry. Only entries written since
    the last start are checked.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last_start = folder / "looked"
    since = last_start.stat().st_mtime if last_start.exists() else 0.0
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since and _is_truncated(path):
                path.unlink()
    last_start.touch()


def _is_truncated(path: pathlib.Path) -> bool:
    content = path.read_bytes()
    if content and not content.startswith(_ZLIB):
        return False  # Compressed by zstandard, which only JAX uses, if it is installed.
    try:
        zlib.decompress(content)
    except zlib.error:
        return True
    return False
