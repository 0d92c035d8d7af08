"""What measures is a process that can be killed with all that it has started."""

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
    """Reports the process that it has started, and never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report({"pid": child.pid})
    time.sleep(600)
    return {}


def die(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Ends as by the system's want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Fails."""
    raise RuntimeError("out of\nmemory")


def lack(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Imports what is not there."""
    import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]

    return {}


@pytest.fixture
def at_work(tmp_path: pathlib.Path) -> Any:
    one = worker.Worker(worker.Context(tmp_path, tmp_path, tiny=True))
    yield one
    one.kill()


def ask(at_work: worker.Worker, function: str) -> Any:
    at_work.begin(Item(function, "", f"{HERE}:{function}", {}, 60.0, 0.0), 60.0)
    return at_work.hear(60.0)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    path = pathlib.Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_killing_it_ends_what_it_has_started(at_work: worker.Worker) -> None:
    _, found = ask(at_work, "hang")
    assert is_alive(found["pid"])

    at_work.kill()

    for _ in range(100):
        if not is_alive(found["pid"]):
            return
        time.sleep(0.05)
    raise AssertionError("The child lives on.")


def test_errors_are_told_in_one_line_and_the_next_item_goes_on(at_work: worker.Worker) -> None:
    assert ask(at_work, "fail") == (worker.FAILED, "RuntimeError: out of memory")
    what, why = ask(at_work, "lack")
    assert what == worker.FAILED
    assert why == "not installed here: No module named 'no_such_package'"
    assert ask(at_work, "die") == (worker.FAILED, "its process ended with code -9")
