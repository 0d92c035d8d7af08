"""Settings every test runs under, and fixtures they share."""

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

# Python keeps what it compiles, for workers and child processes. Below the hook that has shapes
# checked, that is also libraries (see remem_jax/main.py).
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Read when JAX is imported; child processes inherit both.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time. The older of XLA's two generators of CPU code takes half of it, and
# is as fast when it runs; after 0.11.0 there is only the other, and a flag that XLA does not know
# ends the process. A flag that is set outside wins.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",
        # Arrays are small: dividing their convolutions among threads costs more than it saves.
        "--xla_cpu_multi_thread_eigen=false",
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
jax.config.update("jax_num_cpu_devices", 2)  # So that sharding bugs show.
# A third of what is left, for slower loops; not in child processes, which take many steps.
jax.config.update("jax_disable_most_optimizations", True)
# What is compiled for one test is there for the next that asks for the same, which many do. With a
# folder in REMEM_TEST_CACHE, also for the next run of the tests, which then compiles nothing.
_COMPILED = tempfile.mkdtemp(prefix="remem_jax_compiled_")
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ.get("REMEM_TEST_CACHE", _COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
flags.FLAGS.mark_as_parsed()  # Grain reads flags when imported.
# glibc returns freed memory to the system only when asked; other C libraries have no such function.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files first that take long, so that none of them is the last."""
    long = {item.path for item in items if item.get_closest_marker("timeout")}
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path not in long, -slow[item.path]))


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """Frees what a module has compiled: most of the memory that a worker would keep."""
    yield
    jax.clear_caches()
    gc.collect()
    if _TRIM:
        _TRIM(0)


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """What a command does to the log ends with its test."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def rng() -> np.random.Generator:
    """The only source of random numbers in tests that do not need a JAX key."""
    return np.random.default_rng(0)


@pytest.fixture
def key() -> Key[Array, ""]:
    """The JAX key of a test."""
    return jax.random.key(0)


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Compiles with LLVM's optimisations: for networks whose loops take longer than compiling."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def mixed_dtypes() -> Iterator[None]:
    """Lets int32 and float32 mix, as Optax does in its schedules and in Adam."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder of data sets and published weights, beside the repository; not everyone has it."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"Needs the folder {folder}.")
    return folder


@pytest.fixture(scope="module")
def resnet4() -> Iterator[str]:
    """The name of a ResNet of one block, which is in the table of students."""
    from remem_jax import models
    from tests import tiny_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.STUDENTS, tiny_run.NAME, tiny_run.STUDENT)
        yield tiny_run.NAME


@pytest.fixture
def small_run(tmp_path: pathlib.Path, mixed_dtypes: None, resnet4: str) -> Iterator[Any]:
    """A `workflow.parts.Run` of digits with one method, whose models are small."""
    from configs import quickstart
    from remem_jax import mesh, workflow
    from remem_jax.workflow import precision
    from tests import tiny_run

    config = quickstart.get_config()
    config.methods = ("finetune",)
    config.student.model = resnet4
    config.data.image_size = 16
    config.teacher.variant = ""
    config.teacher.init = str(tiny_run.save_teacher(tmp_path / "teacher.npz"))
    config.teacher.batch_size = config.student.batch_size = 8
    on = mesh.make_mesh(jax.devices()[:1])
    with workflow.opened(precision.resolved(config, on), tmp_path, on) as run:
        yield run
