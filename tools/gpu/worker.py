"""Measures items in a separate process, which can be killed with all of its child processes."""

import contextlib
import functools
import importlib
import multiprocessing
import os
import pathlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tools.benchmarks import report
from tools.gpu.budget import Item

Found = dict[str, Any]
Report = Callable[[Found], None]
PARTIAL, DONE, FAILED = "partial", "done", "failed"


class Context(NamedTuple):
    """What all items share.

    Attributes:
        packed: Folder that `packing.pack` made.
        folder: Folder for intermediate files, from which a later start resumes.
        tiny: Whether to use tiny sizes.
        device: "gpu", or "cpu" to try the tool.
    """

    packed: pathlib.Path
    folder: pathlib.Path
    tiny: bool
    device: str = "gpu"


class Worker:
    """A process that measures one item after another."""

    def __init__(self, context: Context) -> None:
        """Starts the process, without importing anything there."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, context))
        self._process.start()
        theirs.close()

    def begin(self, item: Item, seconds: float) -> None:
        """Starts measuring an item, which may take this many seconds."""
        with contextlib.suppress(BrokenPipeError):  # `hear` reports it.
            self._pipe.send((item, seconds))

    def hear(self, seconds: float) -> tuple[str, Any] | None:
        """Waits for a message: `PARTIAL` or `DONE` with a result, or `FAILED` with a reason.

        Returns None if there is no message within these seconds. The end of the process is a
        failure, too.
        """
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            self._process.join()
            return FAILED, f"its process ended with code {self._process.exitcode}"

    def kill(self) -> None:
        """Kills the process and its child processes."""
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()  # It may not have a process group yet.
        self._process.join()
        self._pipe.close()


def _serve(pipe: Any, context: Context) -> None:
    os.setsid()  # Makes a process group, so that child processes can be killed, too.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            item, seconds = pipe.recv()
            report_to = functools.partial(_send_partial, pipe)
            pipe.send(_measured(item, context, seconds, report_to))


def _send_partial(pipe: Any, result: Found) -> None:
    pipe.send((PARTIAL, result))


def _measured(item: Item, context: Context, seconds: float, report_to: Report) -> tuple[str, Any]:
    module, _, function = item.call.partition(":")
    try:
        measure = getattr(importlib.import_module(module), function)
        return DONE, measure(context, report_to, seconds, **item.arguments)
    except ImportError as error:  # A package that this machine lacks.
        return FAILED, f"not installed here: {error}"
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()  # The next items are measured in any case.
        return FAILED, report.brief(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpid(), signal.SIGKILL)


def run_each(
    results: Found, tasks: Iterable[tuple[str, Callable[[], Found]]], report_to: Report
) -> Found:
    """Adds the result or error of each task by name, and reports the results after each task."""
    for name, task in tasks:
        try:
            results[name] = task()
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            results[name] = {"error": report.brief(error)}
        report_to(results)
    return results
