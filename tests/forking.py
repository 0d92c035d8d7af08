"""Child processes of a test that share one import of what they run.

python -m tests.forking SOCKET MODULE...

Importing JAX and this package takes a second or two. Here, a server process imports them once, and
forks a child for each request. It has one thread and no JAX backend, so forking is safe.
"""

import functools
import importlib
import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
# What `run_command` imports besides the command itself, which must be imported as __main__.
OF_COMMAND = (
    "tests.tiny_run",
    "alembic.command",  # Optuna imports it when it opens a database.
    "remem_jax.report.figures.drawing",
    "remem_jax.study.worker",
    "sklearn.datasets",
    "sklearn.model_selection",
)


class Child:
    """A forked process, with the interface of `subprocess.Popen`.

    `stdin` and `stdout` are pipes, which hold 64 KiB.
    """

    def __init__(
        self,
        server: "Server",
        call: str,
        arguments: tuple[Any, ...],
        stderr: pathlib.Path | None = None,
    ) -> None:
        read, write = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.stdin, self.stdout = os.fdopen(read[1], "w"), os.fdopen(write[0])
        self._server = server
        self._stderr = stderr.open("w+") if stderr else tempfile.TemporaryFile("w+")  # noqa: SIM115
        streams = [read[0], write[1], self._stderr.fileno()]
        self.pid: int = server.request("fork", call, arguments, streams=streams)
        os.close(read[0])
        os.close(write[1])

    def send_signal(self, number: int) -> None:
        if self.returncode is None:  # Until then, a dead child keeps its id.
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.request("wait", self.pid, 0)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        if self.returncode is None:
            self.returncode = self._server.request("wait", self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout: float = 200) -> tuple[str, str]:
        """Closes its standard input and waits for its end; returns its output and its errors."""
        self.stdin.close()
        self.wait(timeout)
        self._stderr.seek(0)
        return self.stdout.read(), self._stderr.read()

    def close(self) -> None:
        """Kills the child if it still runs."""
        self.kill()
        self.wait(timeout=60)
        for file in (self.stdin, self.stdout, self._stderr):
            file.close()


class Server:
    """A process that has imported some modules and forks children; used in a `with` statement."""

    def __init__(self, *modules: str, options: tuple[str, ...] = ()) -> None:
        """Starts the server, with these options of Python."""
        self._socket, theirs = socket.socketpair()
        number = str(theirs.fileno())
        self._children: list[Child] = []
        self._process = subprocess.Popen(
            [sys.executable, *options, "-m", "tests.forking", number, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # OpenBLAS would start threads.
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.close_children()
        with self._socket, self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def start(self, call: str, *arguments: Any, stderr: pathlib.Path | None = None) -> Child:
        """Forks a child that calls "module:function"; the arguments can be written as JSON."""
        child = Child(self, call, arguments, stderr)
        self._children.append(child)
        return child

    def close_children(self) -> None:
        """Kills all children that still run."""
        while self._children:
            self._children.pop().close()

    def request(self, *content: Any, streams: Sequence[int] = ()) -> Any:
        """Sends a request, with open files if there are any; returns the reply."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(content) + "\n")
        process.stdin.flush()
        if streams:
            socket.send_fds(self._socket, [b"."], streams)
        return json.loads(process.stdout.readline())


def run_command(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs `python -m remem_jax.main`; JAX has read its part of the environment before."""
    os.environ.update(environment)
    sys.argv = ["remem_jax.main", *arguments]
    runpy.run_module("remem_jax.main", run_name="__main__", alter_sys=True)


def main() -> None:
    """Serves until the end of standard input; in a child, calls its function."""
    for module in sys.argv[2:]:
        importlib.import_module(module)
    with socket.socket(fileno=int(sys.argv[1])) as files:
        call = _serve(files)
    if call:
        call()


def _serve(files: socket.socket) -> Callable[[], None] | None:
    """Handles requests; returns in the server at the end, and in each child with its call."""
    while line := sys.stdin.readline():
        kind, *content = json.loads(line)
        if kind == "wait":
            reply = _wait(*content)
        else:
            call, arguments = content
            _, streams, _, _ = socket.recv_fds(files, 1, 3)
            reply = os.fork()
            if not reply:
                return _in_child(call, arguments, streams)
            for stream in streams:
                os.close(stream)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    return None


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)


def _in_child(call: str, arguments: list[Any], streams: list[int]) -> Callable[[], None]:
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    module, _, function = call.partition(":")
    return functools.partial(getattr(importlib.import_module(module), function), *arguments)


if __name__ == "__main__":
    main()
