"""What is known of platforms: the type that they compute in, and which branch they take."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from remem_jax import platforms


def device(platform: str, capability: str | None = None, version: str = "") -> Any:
    client = types.SimpleNamespace(platform_version=version)
    found = {"compute_capability": capability} if capability else {}
    return types.SimpleNamespace(platform=platform, client=client, **found)


@pytest.mark.parametrize(
    ("one", "dtype"),
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
def test_bfloat16_is_for_tpus_and_recent_gpus(one: Any, dtype: str) -> None:
    assert platforms.compute_dtype([one, one]) == dtype


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (device("gpu", "9.0", "cuda 13000"), "cuda"),
        (device("gpu", "gfx942", "rocm 60300"), "rocm"),
        (device("tpu"), "tpu"),
    ],
)
def test_gpus_are_named_as_jax_compiles_for_them(one: Any, name: str) -> None:
    assert platforms.of(one) == name


def test_only_a_choice_by_platform_has_branches_of_platforms() -> None:
    def either(x: jax.Array) -> jax.Array:
        x = jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
        return jax.lax.cond(x > 0, jnp.exp, jnp.log, x)

    equations = jax.make_jaxpr(either)(1.0).eqns

    taken = [
        str(found.eqns[0].primitive)
        for equation in equations
        for platform in ("cpu", "tpu")
        if (found := platforms.branch(equation, platform))
    ]
    assert taken == ["sin", "cos"]
