"""The compilation cache: a second process reads all that a first one compiled."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import warnings
from typing import Any

import pytest

from remem_jax.train import compiling

ROOT = pathlib.Path(__file__).parents[2]
_CHILD = """
import json, pathlib, sys
import jax, jax.numpy as jnp
from remem_jax.train import compiling

counter = compiling.Counter()
compiling.keep(pathlib.Path(sys.argv[1]))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
first = counter.read()
print(json.dumps([first._asdict(), counter.read()._asdict(), jax.config.jax_compilation_cache_dir]))
"""


def _run(folder: pathlib.Path, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        | {"JAX_PLATFORMS": "cpu"}
        | environment,
        timeout=200,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The counts of two consecutive processes."""
    folder = tmp_path_factory.mktemp("compiled")
    return [_run(folder) for _ in range(2)]


def test_the_first_process_compiles(counted: list[Any]) -> None:
    first = counted[0][0]

    assert first["made"] > 0
    assert first["found"] == 0
    assert first["seconds"] > 0


def test_the_second_process_compiles_nothing(counted: list[Any]) -> None:
    assert counted[1][0]["made"] == 0
    assert counted[1][0]["found"] == counted[0][0]["made"]


def test_truncated_cache_entries_are_compiled_and_saved_again(tmp_path: pathlib.Path) -> None:
    compiled = _run(tmp_path)[0]["made"]
    entries = sorted(tmp_path.glob("*-cache"))
    entries[0].write_bytes(entries[0].read_bytes()[:100])
    entries[1].write_bytes(b"")

    second, _, _ = _run(tmp_path)
    third, _, _ = _run(tmp_path)

    assert len(entries) == compiled
    assert (second["made"], second["found"]) == (2, compiled - 2)
    assert (third["made"], third["found"]) == (0, compiled)


def test_reading_the_counter_resets_it(counted: list[Any]) -> None:
    assert counted[0][1] == {"made": 0, "found": 0, "seconds": 0.0}


def test_the_users_cache_folder_is_used(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path / "users")

    assert _run(tmp_path / "default", JAX_COMPILATION_CACHE_DIR=folder)[2] == folder
    assert not (tmp_path / "default").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_cache_is_used_with_a_warning(
    exists: bool,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path if exists else tmp_path / "compiled"
    used: dict[str, Any] = {}

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", closed)
    monkeypatch.setattr(compiling.jax, "config", FakeConfig(used))
    with warnings.catch_warnings():
        compiling.keep(folder)
        warnings.warn("Error writing persistent compilation cache entry for 'f'", stacklevel=1)

    assert used.get("jax_compilation_cache_dir") == (str(folder) if exists else None)
    assert "cannot be kept in" in caplog.text


class FakeConfig:
    """Stands in for JAX's settings, which the test must not change."""

    jax_compilation_cache_dir = None

    def __init__(self, used: dict[str, Any]) -> None:
        self.update = used.__setitem__
