"""What a user is shown of the log; in a process of its own, since importing it defines flags."""

import json
import os
import pathlib
import subprocess
import sys

_SCRIPT = """
import asyncio, gc, logging as python_logging

from absl import logging

from remem_jax import main


async def leave_a_failed_write():
    asyncio.get_running_loop().create_future().set_exception(OSError("no room"))
    gc.collect()


logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
logging.get_absl_handler().addFilter(main._is_ours)
asyncio.run(leave_a_failed_write())
python_logging.getLogger("asyncio").error("something else of asyncio")
logging.warning("our own")
"""


def test_writes_that_fail_unheard_are_not_shown_and_all_else_is() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)

    shown = [line.partition("] ")[2] for line in done.stderr.splitlines() if "] " in line]
    assert done.returncode == 0, done.stderr
    assert shown == ["something else of asyncio", "our own"]


_HOMES = """
import sys

from remem_jax import main

assert main._homes(["main", "--config=/a/b/configs/figures/one.py:mini", "--workdir=x"]) == ["/a/b"]
assert main._homes(["main", "--config", "/a/b/configs/one.py"]) == ["/a/b"]
assert main._homes(["main", "--config=configs/one.py:folder,init=/c/configs/x.npz"]) == ["."]
assert main._homes(["main", "--config=mine.py", "--config.data.path=/c/configs/x"]) == []
main.parse_flags(["main", f"--config={sys.argv[1]}", "--workdir=run"])
print(main._CONFIG.value.shared)
"""


def test_a_config_imports_another_of_its_folder_wherever_it_is_run_from(
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
        [sys.executable, "-c", _HOMES, str(home / "mine.py:mini")],
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


def test_what_is_wrong_on_the_command_line_is_said_without_its_secrets(
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


def test_a_remote_folder_is_one_line_and_makes_none(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLED],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("remem_jax: gs://bucket/run is no local folder")
    assert list(tmp_path.iterdir()) == []


_IMPORTED = """
import importlib, json, sys

from jaxtyping import install_import_hook

from remem_jax import main

for library in main._LIBRARIES:
    importlib.import_module(library)
before = set(sys.modules)
with install_import_hook(main._CHECKED, main._TYPECHECKER):
    import remem_jax.workflow
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
"""


def test_a_run_starts_without_what_only_some_need_and_compiles_few_libraries() -> None:
    root = pathlib.Path(__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True, cwd=root
    )

    below_the_hook, imported = json.loads(done.stdout)
    others = [name for name in below_the_hook if not name.startswith("remem_jax")]
    assert len(others) < 100  # It was 1,400.
    assert not {"grain", "optuna", "scipy.stats", "sklearn", "torch"} & set(imported)


_FULL = """
import sys

import jax.numpy as jnp

from remem_jax import main


def work(*args, **kwargs):
    jnp.zeros(2**50).block_until_ready()


sys.argv = ["main", "--config=configs/quickstart.py", f"--workdir={sys.argv[1]}", *sys.argv[2:]]
main._runner = lambda: work
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
    assert line.endswith("run holds.")
    assert "Traceback" not in done.stderr
