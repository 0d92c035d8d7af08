"""Items are measured in a process of their own, which can be killed with all that it started."""

import contextlib
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
    """What all items know.

    Attributes:
        packed: Folder that `packing.pack` made.
        folder: For what is written on the way, and found there by the next start.
        tiny: Whether sizes are to be tiny.
        device: "gpu"; or "cpu", where no number is of interest.
    """

    packed: pathlib.Path
    folder: pathlib.Path
    tiny: bool
    device: str = "gpu"


class Worker:
    """A process that measures one item after another."""

    def __init__(self, context: Context) -> None:
        """Starts it; it has imported nothing yet."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, context))
        self._process.start()
        theirs.close()

    def begin(self, item: Item, seconds: float) -> None:
        """Gives it an item, and the seconds that it may take."""
        with contextlib.suppress(BrokenPipeError):  # `hear` says so.
            self._pipe.send((item, seconds))

    def hear(self, seconds: float) -> tuple[str, Any] | None:
        """What it says within some seconds: `PARTIAL` or `DONE` and a result, `FAILED` and why.

        None if it says nothing. A process that has ended says that.
        """
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            self._process.join()
            return FAILED, f"its process ended with code {self._process.exitcode}"

    def kill(self) -> None:
        """Ends it, and what it has started, at once."""
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()  # In case it has no group yet.
        self._process.join()
        self._pipe.close()


def _serve(pipe: Any, context: Context) -> None:
    os.setsid()  # A group, to be killed with all that is in it.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            item, seconds = pipe.recv()
            pipe.send(_measured(item, context, seconds, lambda found: pipe.send((PARTIAL, found))))


def _measured(item: Item, context: Context, seconds: float, report_to: Report) -> tuple[str, Any]:
    module, _, function = item.call.partition(":")
    try:
        measure = getattr(importlib.import_module(module), function)
        return DONE, measure(context, report_to, seconds, **item.arguments)
    except ImportError as error:  # Of what this machine lacks.
        return FAILED, f"not installed here: {error}"
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()  # An item that fails must not keep others from being measured.
        return FAILED, report.brief(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpid(), signal.SIGKILL)


def each(found: Found, works: Iterable[tuple[str, Callable[[], Found]]], told: Report) -> Found:
    """Adds the result of each work, or its error, by name, and reports what there is so far."""
    for name, work in works:
        try:
            found[name] = work()
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            found[name] = {"error": report.brief(error)}
        told(found)
    return found
