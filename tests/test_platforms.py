"""Properties of platforms: their compute dtype and the branches that they select."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from remem_jax import platforms


def device(platform: str, capability: str | None = None, version: str = "") -> Any:
    client = types.SimpleNamespace(platform_version=version)
    attributes = {"compute_capability": capability} if capability else {}
    return types.SimpleNamespace(platform=platform, client=client, **attributes)


@pytest.mark.parametrize(
    ("accelerator", "dtype"),
    [
        (device("cpu"), "float32"),
        (device("tpu"), "bfloat16"),
        (device("gpu", "7.5"), "float32"),
        (device("gpu", "8.0"), "bfloat16"),
        (device("gpu", "12.0"), "bfloat16"),
        (device("gpu", "gfx942"), "bfloat16"),
        (device("METAL"), "float32"),
    ],
)
def test_tpus_and_recent_gpus_compute_in_bfloat16(accelerator: Any, dtype: str) -> None:
    assert platforms.compute_dtype([accelerator, accelerator]) == dtype


@pytest.mark.parametrize(
    ("accelerator", "name"),
    [
        (device("gpu", "9.0", "cuda 13000"), "cuda"),
        (device("gpu", "gfx942", "rocm 60300"), "rocm"),
        (device("tpu"), "tpu"),
    ],
)
def test_platforms_have_the_names_that_jax_compiles_for(accelerator: Any, name: str) -> None:
    assert platforms.of(accelerator) == name


def test_only_platform_dependent_equations_have_platform_branches() -> None:
    def either(x: jax.Array) -> jax.Array:
        x = jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
        return jax.lax.cond(x > 0, jnp.exp, jnp.log, x)

    equations = jax.make_jaxpr(either)(1.0).eqns

    taken = [
        str(branch.eqns[0].primitive)
        for equation in equations
        for platform in ("cpu", "tpu")
        if (branch := platforms.branch(equation, platform))
    ]
    assert taken == ["sin", "cos"]
