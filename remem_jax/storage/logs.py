"""Logs of metrics."""

import contextlib
import json
import os
import pathlib
import sys
import time
import types
from typing import Any, TextIO

import numpy as np

from remem_jax import mesh
from remem_jax.records import Metrics
from remem_jax.storage import results


class RunLog:
    """Writes metrics of a run as JSON lines and for TensorBoard; a context manager.

    A run that is killed and resumed writes some steps twice; `read` uses the last. If several
    processes make one run, the first one writes.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Appends to the logs in a directory."""
        self._writes = mesh.is_writer()
        if self._writes:
            self._lines = _open_for_append(directory / "metrics.jsonl")
            events = directory / "tensorboard"
            events.mkdir(exist_ok=True)
            # Without the thread of SummaryWriter, which would end unseen on a full disk; its queue
            # then fills, and the run hangs.
            self._tensorboard = _import_tensorboard()
            self._events = self._tensorboard.event_file_writer.EventsWriter(
                str(events / "events"), f".{os.getpid()}"
            )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Closing retries writes that have failed, and fails again.
        with contextlib.suppress(*((OSError,) if kind else ())):
            if self._writes:
                self._lines.close()
                self._events.close()

    def write(self, part: str, step: int, metrics: Metrics) -> None:
        """Writes scalars, or lists with a value per student, of a step of a stage of the run."""
        if not self._writes:
            return
        values = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        row = {"part": part, "step": step, "time": round(time.time(), 3), **values}
        self._lines.write(json.dumps(results.finite(row), allow_nan=False) + "\n")
        self._lines.flush()
        for name, value in values.items():
            members = value if isinstance(value, list) else [value]
            for i, member in enumerate(members):
                suffix = f"/{i}" if isinstance(value, list) else ""
                event = self._tensorboard.proto.event_pb2.Event(
                    wall_time=time.time(),
                    step=step,
                    summary=self._tensorboard.summary.scalar(f"{part}/{name}{suffix}", member),
                )
                self._events.write_event(event)
        self._events.flush()


def _import_tensorboard() -> types.ModuleType:
    """Imports tensorboardX without torch, which it would import too; torch takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        import tensorboardX

        return tensorboardX
    finally:
        if torch is None:
            del sys.modules["torch"]


def _open_for_append(path: pathlib.Path) -> TextIO:
    """Opens a file of lines to append to; terminates a line that a kill truncated."""
    cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    file = path.open("a", encoding="utf-8")
    if cut:
        file.write("\n")
    return file


def read(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a run's metrics, sorted by stage and step; of repeated steps, the last one counts."""
    path = directory / "metrics.jsonl"
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        key = (row.pop("part"), row.pop("step"))
        rows[key] = {**rows.get(key, {}), **row}
    return [{"part": part, "step": step, **row} for (part, step), row in sorted(rows.items())]
