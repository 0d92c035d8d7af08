"""The measuring process can be killed together with its child processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tools.gpu import worker
from tools.gpu.budget import Item

HERE = "tests.measure_gpu.test_worker"


def hang(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Starts a process, reports its id, and never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report({"pid": child.pid})
    time.sleep(600)
    return {}


def die(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Is killed, as by an out-of-memory system."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Raises an error with two lines."""
    raise RuntimeError("out of\nmemory")


def lack(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Imports a package that is not installed."""
    import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]

    return {}


@pytest.fixture
def at_work(tmp_path: pathlib.Path) -> Any:
    started = worker.Worker(worker.Context(tmp_path, tmp_path, tiny=True))
    yield started
    started.kill()


def ask(at_work: worker.Worker, function: str) -> Any:
    at_work.begin(Item(function, "", f"{HERE}:{function}", {}, 60.0, 0.0), 60.0)
    return at_work.hear(60.0)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    path = pathlib.Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_killing_it_ends_its_child_processes(at_work: worker.Worker) -> None:
    _, result = ask(at_work, "hang")
    assert is_alive(result["pid"])

    at_work.kill()

    for _ in range(100):
        if not is_alive(result["pid"]):
            return
        time.sleep(0.05)
    raise AssertionError("The child is still running.")


def test_errors_are_one_line_and_the_next_item_runs(at_work: worker.Worker) -> None:
    assert ask(at_work, "fail") == (worker.FAILED, "RuntimeError: out of memory")
    status, reason = ask(at_work, "lack")
    assert status == worker.FAILED
    assert reason == "not installed here: No module named 'no_such_package'"
    assert ask(at_work, "die") == (worker.FAILED, "its process ended with code -9")
