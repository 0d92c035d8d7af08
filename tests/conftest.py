"""Settings of JAX that all tests run under, and fixtures that several files use."""

import atexit
import collections
import ctypes
import gc
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from packaging.version import Version

# Workers and child processes share compiled Python files. The import hook that checks shapes needs
# files of its own, also of libraries that are imported under it (see remem_jax/main.py).
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# JAX reads these when it is imported; child processes inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # Compiles in two thirds of the time.
# All workers and their child processes share compiled programs. A folder in REMEM_TEST_CACHE keeps
# them for the next run of the tests.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = os.environ.get("REMEM_TEST_CACHE", "")
    if not compiled:
        compiled = tempfile.mkdtemp(prefix="remem_jax_compiled_")
        atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
# Compilation takes most of the time. The older of XLA's two CPU code generators halves it, and its
# code is as fast. Releases after 0.11.0 have only the newer one, and XLA exits on an unknown flag.
# A flag set by the user overrides these.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",
        # Arrays are small: splitting a convolution among threads costs more than it saves.
        "--xla_cpu_multi_thread_eigen=false",
        # Compiling a program as one LLVM module rather than many saves a third of the CPU time.
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false"
        if Version(metadata.version("jaxlib")) <= Version("0.11.0")
        else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import numpy as np
import pytest
from absl import flags, logging
from jaxtyping import Array, Key

sys.dont_write_bytecode = False
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 2)  # Two devices expose sharding bugs.
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags when it is imported.
# glibc returns freed memory to the system only on request; other C libraries lack this function.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first, so that no worker is left with one at the end."""
    long = {item.path for item in items if item.get_closest_marker("timeout")}
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path not in long, -slow[item.path]))


def pytest_collection_finish() -> None:
    """Spares the garbage collector what all tests import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees what a module has cached: mostly compiled programs, and networks."""
    yield
    for value in vars(request.module).values():
        if clear := getattr(value, "cache_clear", None):
            clear()
    jax.clear_caches()
    gc.collect()
    gc.freeze()  # What is left, such as imported packages, lasts to the end.
    if _TRIM:
        _TRIM(0)


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """Restores the verbosity of the log after each test."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def rng() -> np.random.Generator:
    """Returns the random generator of a test that needs no JAX key."""
    return np.random.default_rng(0)


@pytest.fixture
def key() -> Key[Array, ""]:
    """Returns the JAX key of a test."""
    return jax.random.key(0)


@pytest.fixture
def mixed_dtypes() -> Iterator[None]:
    """Allows int32 and float32 to mix, which Optax's schedules and Adam need."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Returns the folder of data sets and published weights beside the repository, or skips."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"Needs the folder {folder}.")
    return folder


@pytest.fixture(scope="module")
def resnet4() -> Iterator[str]:
    """Adds a small student to the table of students, and returns its name."""
    from remem_jax import models
    from tests import tiny_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.STUDENTS, tiny_run.NAME, tiny_run.STUDENT)
        yield tiny_run.NAME


@pytest.fixture
def small_run(tmp_path: pathlib.Path, mixed_dtypes: None, resnet4: str) -> Iterator[Any]:
    """Opens a run of digits with one method and small models."""
    from remem_jax import mesh, workflow
    from remem_jax.workflow import precision
    from tests import tiny_run

    config = tiny_run.digits()
    config.methods = ("finetune",)
    config.student.model = resnet4
    config.data.image_size = 16
    config.teacher.variant = ""
    config.teacher.init = str(tiny_run.save_teacher(tmp_path / "teacher.npz"))
    config.teacher.batch_size = config.student.batch_size = 8
    on = mesh.make_mesh(jax.devices()[:1])
    with workflow.opened(precision.resolved(config, on), tmp_path, on) as run:
        yield run
