"""Settings every test runs under, and fixtures they share."""

import os
import pathlib
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"  # Read when JAX is imported; child processes inherit it.

import jax
import numpy as np
import pytest
from absl import flags
from jaxtyping import Array, Key

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 2)  # So that sharding bugs show.
if "REMEM_TEST_CACHE" in os.environ:  # A folder; the second run then compiles nothing.
    jax.config.update("jax_compilation_cache_dir", os.environ["REMEM_TEST_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
flags.FLAGS.mark_as_parsed()  # Grain reads flags when imported.


@pytest.fixture
def rng() -> np.random.Generator:
    """The only source of random numbers in tests that do not need a JAX key."""
    return np.random.default_rng(0)


@pytest.fixture
def key() -> Key[Array, ""]:
    """The JAX key of a test."""
    return jax.random.key(0)


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
