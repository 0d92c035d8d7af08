"""Start and end of the commands, each in its own process, and their imports."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def started(work: str, *, before: Sequence[str] = (), **options: object) -> subprocess.Popen[str]:
    """Starts a process with a command that runs the Python code `work`."""
    program = f"""
import sys, time, os, pathlib
from remem_jax.export import command
from remem_jax.checks import SettingError
command.begin()
def work():
{textwrap.indent(textwrap.dedent(work), "    ")}
sys.exit(command.run(work, stopped="stopped, says the test"))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([*before, sys.executable, "-c", program], **{**pipes, **options})  # pyright: ignore


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line_after_cleaning_up(number: int, code: int) -> None:
    process = started(
        """
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("removed", flush=True)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"

    process.send_signal(number)
    out, error = process.communicate(timeout=20)

    assert (process.returncode, out, error) == (
        code,
        "removed\n",
        "remem_jax: stopped, says the test.\n",
    )


def test_a_second_signal_ends_a_process_that_cannot_run_handlers() -> None:
    process = started(
        """
        try:
            print("begun", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("heard", flush=True)
            import ctypes
            ctypes.CDLL(None).sleep(60)  # As a long compilation: Python runs no handler.
            ctypes.CDLL(None).sleep(60)
        """
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "heard\n"

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=20) == 143
    process.communicate()


def test_closed_standard_streams_are_replaced(tmp_path: pathlib.Path) -> None:
    process = started(
        f"""
        with open({str(tmp_path / "file")!r}, "w") as file:
            file.write("content")
            file.flush()
            os.write(2, b"of a library")  # Not into the file.
            print("told to nobody", file=sys.stderr)
            raise SettingError("not into the file")
        """,
        before=["sh", "-c", 'exec "$@" 2>&-', "sh"],
    )

    process.communicate(timeout=20)

    assert process.returncode == 1
    assert (tmp_path / "file").read_text() == "content"


def test_names_outside_the_encoding_are_escaped() -> None:
    process = started(r"print('mod\u00e8le')", env={**os.environ, "PYTHONIOENCODING": "ascii"})

    out, error = process.communicate(timeout=20)

    assert (process.returncode, out, error) == (0, "mod\\xe8le\n", "")


def test_a_closed_pipe_is_not_an_error() -> None:
    process = started("time.sleep(0.2); print('line', flush=True)")
    assert process.stdout is not None
    process.stdout.close()

    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=20) == 1


@pytest.mark.parametrize("command", ["export", "predict"])
@pytest.mark.parametrize("arguments", [["--help"], ["no_run", "no_image.png", "--top=0"]])
def test_help_and_wrong_arguments_import_nothing_heavy(command: str, arguments: list[str]) -> None:
    heavy = {"jax", "flax", "orbax", "numpy", "scipy", "sklearn", "onnx", "onnxruntime", "optuna"}
    heavy |= {"safetensors", "PIL", "tensorboardX", "matplotlib", "ml_collections", "jaxtyping"}

    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"remem_jax.{command}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert process.returncode == (0 if arguments == ["--help"] else process.returncode)
    assert "argparse" in imported
    assert not imported & heavy
