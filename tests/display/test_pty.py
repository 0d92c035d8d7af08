"""The command on a terminal: stopped by Ctrl-C, then resumed to its end, as a user sees it."""

import contextlib
import fcntl
import os
import pathlib
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pyte
import pytest

from remem_jax import signals
from tests import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = pathlib.Path(__file__).parents[2]
COLUMNS, LINES = 100, 60
SETTINGS = {
    "methods": "('scratch', 'finetune')",
    "save_every": 10,
    "teacher.steps": "(200,)",
    "teacher.batch_size": 16,
    "teacher.warmup_steps": 5,
    "student.steps": 40,
    "student.batch_size": 8,
    "student.learning_rates": "(0.05,)",
    "student.weights": "(0.5,)",
    "student.warmup_steps": 5,
    "student.evaluations": 2,
}


class Run:
    """A run whose standard error is a terminal, and whose standard output is a pipe.

    Attributes:
        screen: What a user sees on the terminal.
        output: All bytes that were written to it.
        process: The process.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.screen, self.output = pyte.Screen(COLUMNS, LINES), b""
        settings = {**SETTINGS, "teacher.init": folder / "teacher.npz"}
        overrides = [f"--config.{name}={value}" for name, value in settings.items()]
        arguments = ["--config=tests/tiny_run.py", f"--workdir={folder / 'run'}", *overrides]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "remem_jax.main", *arguments],
            cwd=ROOT,
            env=os.environ | {"REMEM_CACHE": str(folder / "cache"), "TERM": "xterm-256color"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        )
        os.close(theirs)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        stream = pyte.ByteStream(self.screen)
        with contextlib.suppress(OSError):  # Raised when the process has ended.
            while data := os.read(self._terminal, 2**16):
                self.output += data
                stream.feed(data)

    def wait(self) -> list[str]:
        """Waits for the end; returns the lines of the screen."""
        output, _ = self.process.communicate()
        self._thread.join()
        os.close(self._terminal)
        assert output == ""
        return [line.rstrip() for line in self.screen.display if line.strip()]


def test_a_run_is_stopped_and_resumed_on_a_terminal(tmp_path: pathlib.Path) -> None:
    tiny_run.save_teacher(tmp_path / "teacher.npz")
    checkpoint = tmp_path / "run" / "teachers" / "finetune" / "checkpoints" / "10"

    first = Run(tmp_path)
    while first.process.poll() is None and not checkpoint.is_dir():
        time.sleep(0.002)
    first.process.send_signal(signal.SIGINT)
    stopped = first.wait()
    second = Run(tmp_path)
    finished = second.wait()

    assert first.process.returncode == signals.STOPPED, stopped
    assert stopped[-1].endswith("which is saved; the same command goes on from there.")
    assert stopped[-2].startswith("  Stopped after ")
    assert any(line.endswith("a second signal stops at once.") for line in stopped)
    assert any(line.startswith("✓ From scratch: students ") for line in stopped)
    assert any(line.startswith("✗ Fine-tuning: teacher ") for line in stopped)
    assert "  Fine-tuning: students of step 200" in stopped

    assert second.process.returncode == 0, finished
    assert finished[-1].startswith("  Took ")
    listed = [line for line in finished if line.startswith(("✓", "✗", "▶"))]
    assert [line.partition("  ")[0] for line in listed if "Scan" not in line] == [
        "✓ From scratch: students",
        "✓ Fine-tuning: teacher",
        "✓ Fine-tuning: students of step 200",
    ]
    assert listed[-3].endswith("earlier")
    # Results of the two students and of the teacher, the best first, below the stages.
    shares = [float(line.split()[0]) for line in finished if " % test " in line]
    assert len(shares) == 3, finished
    assert shares == sorted(shares, reverse=True)
    for run in (first, second):
        assert b"\x1b[?25l" not in run.output  # The cursor was never hidden.
        assert b".py:" not in run.output  # As in absl's prefix.
        assert b"{'" not in run.output
