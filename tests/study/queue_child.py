"""A worker of test_queue.py, which prints a line for each event."""

import contextlib
import pathlib
import sys
import time
from typing import Any

import alembic.command  # noqa: F401 Optuna imports it when it opens a database.

from remem_jax.study import queue
from remem_jax.study.configurations import Configuration

with contextlib.suppress(ImportError):
    import psycopg  # noqa: F401


def main(storage: str, keys: list[str], seconds: float, settings: dict[str, Any]) -> None:
    """Waits for a line on standard input; then runs configurations until all are finished."""
    _print("ready")
    sys.stdin.readline()
    with queue.open_queue(storage, "study", folder=pathlib.Path.cwd(), **settings) as shared:
        shared.add([Configuration(key, {"x": 0.5}, {"row": "vit"}) for key in keys])
        while "waiting" in (states := shared.states(keys).values()) or "running" in states:
            claim = shared.claim(keys)
            if claim is None:
                time.sleep(0.02)
                continue
            with claim.working():
                _print("begin", claim.key)
                time.sleep(seconds)
                is_ours = claim.done(1.0, "a worker's")
            _print("done" if is_ours else "lost", claim.key)


def _print(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()
