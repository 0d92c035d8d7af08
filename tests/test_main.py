"""The command: its log, messages and imports; in subprocesses, since importing it defines flags."""

import os
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = """
import asyncio, gc, logging as python_logging

from absl import logging

from remem_jax import display


async def leave_a_failed_write():
    asyncio.get_running_loop().create_future().set_exception(OSError("no room"))
    gc.collect()


with display.opened():
    asyncio.run(leave_a_failed_write())
    python_logging.getLogger("asyncio").error("something else of asyncio")
    logging.warning("our own")
"""


def test_pending_failed_writes_are_not_logged_but_everything_else_is() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    logged = [line.partition(" ")[2] for line in done.stderr.splitlines()]
    assert logged == ["error: something else of asyncio", "warning: our own"]


_ROOTS = """
import sys

from remem_jax import main

roots = main._config_roots
assert roots(["main", "--config=/a/b/configs/figures/one.py:mini", "--workdir=x"]) == ["/a/b"]
assert roots(["main", "--config", "/a/b/configs/one.py"]) == ["/a/b"]
assert roots(["main", "--config=configs/one.py:folder,init=/c/configs/x.npz"]) == ["."]
assert roots(["main", "--config=mine.py", "--config.data.path=/c/configs/x"]) == []
main.parse_flags(["main", f"--config={sys.argv[1]}", "--workdir=run"])
print(main._CONFIG.value.shared)
"""


def test_a_config_imports_another_of_its_folder_from_any_working_directory(
    tmp_path: pathlib.Path,
) -> None:
    home = tmp_path / "home" / "configs" / "figures"
    home.mkdir(parents=True)
    (home.parent / "parts.py").write_text("SHARED = 7")
    (home / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import parts\n"
        "def get_config(spec=''):\n"
        "    return ConfigDict({'workflow': 'remem', 'shared': f'{parts.SHARED} {spec}'})\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    done = subprocess.run(
        [sys.executable, "-c", _ROOTS, str(home / "mine.py:mini")],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "mini"]


_SECRETS = """
import sys

from absl import flags

from remem_jax import main

file, rest = sys.argv[1], ["--workdir=run"]
for wrong in (
    ["--config.storage=postgresql://me:s3cr3t@host/db", "--config.nothing=https://me:s3cr3t@host/"],
    ["--config.nothing=https://me:s3cr3t@host/"],
    ["--config.seeds=https://me:s3cr3t@host/"],
    ["--https://me:s3cr3t@host/"],
):
    try:
        main.parse_flags(["main", f"--config={file}", *rest, *wrong])
        print("passed")
    except SystemExit as error:
        print(error)
    flags.FLAGS.unparse_flags()
try:
    main.main(["main", "postgresql://me:s3cr3t@host/db"])
except SystemExit as error:
    print(error)
"""


def test_messages_about_the_command_line_contain_no_secrets(
    tmp_path: pathlib.Path,
) -> None:
    root = pathlib.Path(__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "-c", _SECRETS, str(root / "configs" / "study.py")],
        capture_output=True,
        text=True,
        cwd=root,
    )

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert "passed" not in done.stdout
    assert "postgresql://me:***@host/db; settings begin" in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr


_CALLED = """
import sys

from remem_jax import main

sys.argv = ["main", "--config=configs/quickstart.py", "--workdir=gs://bucket/run"]
main.main(main.parse_flags(sys.argv)[:1])
"""


def test_a_remote_folder_is_refused_in_one_line_and_not_created(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLED],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "remem_jax: gs://bucket/run is not a local folder"
    )
    assert list(tmp_path.iterdir()) == []


_ROOT = pathlib.Path(__file__).parents[1]
_QUICKSTART = ("--config=configs/quickstart.py", "--workdir=run")
# Libraries that take long to import, by what the command does not need yet.
_FOR_SOME_RUNS = {"grain", "onnx", "optuna", "sklearn", "sqlalchemy", "torch"}
_FOR_RUNS = _FOR_SOME_RUNS | {
    *("matplotlib", "orbax", "requests", "scipy", "tensorboardX", "tensorflow_datasets"),
    "tensorstore",
}
_FOR_CHECKS = _FOR_RUNS | {"flax", "jax", "jaxlib", "numpy", "optax"}
_FOR_TESTS = {"IPython", "beartype", "chex", "hypothesis", "pytest"}


def _imports(*command: str) -> tuple[set[str], str]:
    """Returns the packages that a Python command imports, and the rest of its stderr."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, cwd=_ROOT
    )
    lines = done.stderr.splitlines()
    timed = [line for line in lines if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in timed}
    return names, "\n".join(line for line in lines if line not in timed)


@pytest.mark.parametrize(
    "arguments", [("--help",), (*_QUICKSTART, "--config.teacher.rhoo=1")], ids=["help", "unknown"]
)
def test_the_command_line_is_parsed_without_jax(arguments: tuple[str, ...]) -> None:
    imported, rest = _imports("-m", "remem_jax.main", *arguments)

    assert "ml_collections" in imported
    assert not imported & (_FOR_CHECKS | _FOR_TESTS)
    assert ("rhoo" in rest) == ("--help" not in arguments)


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ((*_QUICKSTART, "--config.teacher.rho=-1"), "config.teacher.rho"),
        (("--config=configs/study.py", "--workdir=run", "--config.seeds=()"), "config.seeds"),
    ],
    ids=["run", "study"],
)
def test_a_wrong_setting_is_rejected_without_the_libraries_of_a_run(
    arguments: tuple[str, ...], setting: str
) -> None:
    imported, rest = _imports("-m", "remem_jax.main", *arguments)

    assert not imported & (_FOR_RUNS | _FOR_TESTS)
    assert rest.startswith(f"remem_jax: {setting} must ")
    assert len(rest.splitlines()) == 1


def test_a_run_starts_without_libraries_that_only_some_runs_need() -> None:
    imported, _ = _imports("-c", "import remem_jax.workflow")

    assert "orbax" in imported
    assert not imported & (_FOR_SOME_RUNS | _FOR_TESTS | {"matplotlib", "tensorboardX"})


_FULL = """
import sys

import jax.numpy as jnp

from remem_jax import main


def work(*args, **kwargs):
    jnp.zeros(2**50).block_until_ready()


sys.argv = ["main", "--config=configs/quickstart.py", f"--workdir={sys.argv[1]}", *sys.argv[2:]]
main._workflow = lambda: work
main.main(main.parse_flags(sys.argv)[:1])
"""


def test_a_full_device_ends_in_one_line(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )

    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "remem_jax" in line]
    assert line.startswith("remem_jax: the memory of cpu is full (RESOURCE_EXHAUSTED")
    assert "config.compute_dtype" in line
    assert line.endswith(f"; the same command resumes from {tmp_path / 'run'}.")
    assert "Traceback" not in done.stderr
