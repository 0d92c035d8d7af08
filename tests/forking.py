"""Child processes of a test that share one import of what they run.

python -m tests.forking MODULE...

Importing JAX and this package takes a second or two. Here, a server process imports them once, and
forks a child for each request. It has one thread and no JAX backend, so forking is safe.
"""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


class Child:
    """A forked process, with the interface of `subprocess.Popen`.

    `stdin` and `stdout` are pipes, which hold 64 KiB.
    """

    def __init__(self, server: "Server", call: str, arguments: tuple[Any, ...]) -> None:
        read, write = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.stdin, self.stdout = os.fdopen(read[1], "w"), os.fdopen(write[0])
        self._server = server
        self._stderr = tempfile.TemporaryFile("r")  # noqa: SIM115
        ours = (read[0], write[1], self._stderr.fileno())
        paths = [f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in ours]
        self.pid: int = server.request("fork", call, arguments, paths)
        os.close(read[0])
        os.close(write[1])

    def send_signal(self, number: int) -> None:
        if self.returncode is None:  # Until then, a dead child keeps its id.
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def wait(self, timeout: float) -> int:
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
        command = [sys.executable, *options, "-m", "tests.forking", *modules]
        pipe = subprocess.PIPE
        # OpenBLAS would start threads.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        self._children: list[Child] = []
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.close_children()
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def start(self, call: str, *arguments: Any) -> Child:
        """Forks a child that calls "module:function"; the arguments can be written as JSON."""
        child = Child(self, call, arguments)
        self._children.append(child)
        return child

    def close_children(self) -> None:
        """Kills all children that still run."""
        while self._children:
            self._children.pop().close()

    def request(self, *content: Any) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(content) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def main() -> None:
    """Serves until the end of standard input; in a child, calls its function."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    if call := _serve():
        call()


def _serve() -> Callable[[], None] | None:
    """Handles requests; returns in the server at the end, and in each child with its call."""
    while line := sys.stdin.readline():
        kind, *content = json.loads(line)
        if kind == "wait":
            reply = _wait(*content)
        else:
            call, arguments, paths = content
            modes = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
            files = [os.open(path, mode) for path, mode in zip(paths, modes, strict=True)]
            reply = os.fork()
            if not reply:
                return _in_child(call, arguments, files)
            for file in files:
                os.close(file)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    return None


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _in_child(call: str, arguments: list[Any], files: list[int]) -> Callable[[], None]:
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    module, _, function = call.partition(":")
    return functools.partial(getattr(importlib.import_module(module), function), *arguments)


if __name__ == "__main__":
    main()
