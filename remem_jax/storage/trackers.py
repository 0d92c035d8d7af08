"""Sends the metrics of a run to Weights & Biases or MLflow, from a process beside the run.

The process (`tracker_process`) follows metrics.jsonl, so a tracker that is slow, offline or broken
neither delays the run nor ends it, and a run that is resumed goes on with the same tracked run.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from remem_jax import mesh, signals
from remem_jax.checks import one_of, require

TOOLS = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
INFO, WARNING = "remem_jax info: ", "remem_jax warning: "  # Before the lines that are logged.
_END_SECONDS = 20.0  # Time that a finished run waits for its last metrics to be sent.


class Label(NamedTuple):
    """What a tracker shows of a run.

    Attributes:
        group: The study that the run is a trial of; "" is none.
        name: Its name; "" is the name of its folder.
    """

    group: str = ""
    name: str = ""


def check(name: str, tool: str) -> None:
    """Raises unless a tracker is known and its client is installed.

    Args:
        name: Name of the setting, for messages.
        tool: Its value; "" is no tracker.
    """
    one_of(name, tool, ("", *TOOLS))
    spec = importlib.util.find_spec(tool) if tool else None
    require(
        # A client leaves a folder called wandb, which looks like a package without a file.
        not tool or (spec is not None and spec.origin is not None),
        f"{name} is {tool}, whose client is not installed: pip install 'remem_jax[{tool}]', or "
        f"pip install --editable '.[{tool}]' in a checkout.",
    )


@contextlib.contextmanager
def following(
    tool: str, directory: pathlib.Path, settings: Mapping[str, Any], label: Label
) -> Iterator[None]:
    """Sends what a run writes to metrics.jsonl while the block runs, and its results at the end.

    If several processes make one run, the first one does this. Failures are logged once.

    Args:
        tool: One of `TOOLS`, or "" for none.
        directory: Folder of the run. tracked.json in it remembers the tracked run.
        settings: All settings of the run, nested; JSON values without secrets.
        label: Its name and group.
    """
    process = _start(tool) if tool and mesh.is_writer() else None
    if process is None:
        yield
        return
    reader = threading.Thread(target=_log, args=(tool, process), name="tracker", daemon=True)
    reader.start()
    _tell(
        process,
        {
            "tool": tool,
            "directory": str(directory.absolute()),
            "settings": settings,
            "group": label.group,
            "name": label.name or directory.absolute().name,
        },
    )
    state, before = "failed", _results_time(directory)
    try:
        yield
        state = "finished"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or signals.stop_requested():
            state = "stopped"
        raise
    finally:
        # A run in which a method diverged has those of the others.
        is_new = state == "failed" and _results_time(directory) != before
        _tell(process, {"state": state, "has_results": state == "finished" or is_new}, last=True)
        reader.join(_END_SECONDS)
        if reader.is_alive():
            logging.warning("%s: the last metrics are still being sent.", TOOLS[tool])


def _results_time(directory: pathlib.Path) -> int:
    """Returns when results.json of a run was written; 0 if there is none."""
    try:
        return (directory / "results.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _start(tool: str) -> subprocess.Popen[str] | None:
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.Popen(
            # Without the working directory in the path: it may have a folder called wandb.
            [sys.executable, "-P", "-m", "remem_jax.storage.tracker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the run alone, which then tells the tracker.
        )
    except OSError as error:
        logging.warning("%s gets no metrics: %s.", TOOLS[tool], error)
        return None


def _tell(
    process: subprocess.Popen[str], message: Mapping[str, Any], *, last: bool = False
) -> None:
    """Writes a line for the process, if it is still alive; after the last one, it ends."""
    if process.stdin is None:
        return
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
    if last:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _log(tool: str, process: subprocess.Popen[str]) -> None:
    """Logs what the process has to say, until it ends; a client's own messages are dropped."""
    last = ""
    with process.stderr or contextlib.nullcontext(()) as lines:
        for line in lines:
            if line.startswith(INFO):
                logging.info("%s: %s", TOOLS[tool], line.removeprefix(INFO).strip())
            elif line.startswith(WARNING):
                logging.warning("%s: %s", TOOLS[tool], line.removeprefix(WARNING).strip())
            else:
                last = line.strip() or last
    if process.wait():
        logging.warning("%s gets no more metrics: %s", TOOLS[tool], last)
