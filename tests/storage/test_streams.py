"""Commands whose standard streams are closed or limited to ASCII."""

import os
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = """
import sys

from remem_jax.storage import streams

streams.prepare()
file = open(sys.argv[1], "w")
assert file.fileno() > 2, file.fileno()
print(sys.argv[2])
print(sys.argv[2], file=sys.stderr)
sys.stdin.read()
file.write(sys.argv[2])
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed: str, tmp_path: pathlib.Path) -> None:
    command = f'"$@" {closed}'
    arguments = [sys.executable, "-c", _SCRIPT, tmp_path / "found", "été"]

    process = subprocess.run(["bash", "-c", command, "_", *arguments], stdin=subprocess.DEVNULL)

    assert (process.returncode, (tmp_path / "found").read_text("utf-8")) == (0, "été")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"\\xe9t\\xe9\n"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "été\n".encode()),
    ],
)
def test_ascii_streams_accept_any_text(
    settings: dict[str, str], expected: bytes, tmp_path: pathlib.Path
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT, tmp_path / "found", "été"],
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )

    assert (process.stdout, process.stderr) == (expected, expected)


_COMMAND = """
import os, signal, sys

from remem_jax.storage import streams

streams.begin("name")
if sys.argv[1] == "importing":
    os.kill(os.getpid(), signal.SIGINT)


def work():
    if sys.argv[1] == "working":
        os.kill(os.getpid(), signal.SIGINT)
    print("x" * 100_000)
    return 3


sys.exit(streams.run("name", work))
"""


@pytest.mark.parametrize(
    ("when", "output", "code", "expected"),
    [
        ("importing", "/dev/null", 130, "name: stopped.\n"),
        ("working", "/dev/null", 130, "name: stopped.\n"),
        ("never", "/dev/null", 3, ""),
        ("never", "/dev/full", 1, "name: standard output cannot be written (No space left on d"),
    ],
)
def test_a_command_ends_with_one_line(when: str, output: str, code: int, expected: str) -> None:
    with pathlib.Path(output).open("w") as file:
        process = subprocess.run(
            [sys.executable, "-c", _COMMAND, when], stdout=file, stderr=subprocess.PIPE, text=True
        )

    assert (process.returncode, process.stderr[: len(expected)]) == (code, expected)
    assert len(process.stderr.splitlines()) <= 1


def test_a_reader_may_close_the_pipe() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "never"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        command.stdout.close()
        errors = command.stderr.read() if command.stderr else ""

    assert errors == ""
