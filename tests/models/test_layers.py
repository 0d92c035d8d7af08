"""Layers in their fast forms, against XLA's own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax.models import layers


def convolved(maps: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's convolution, with torch's padding."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_a_convolution_and_its_gradients_are_xlas(
    rng: np.random.Generator, side: int, kernel: int, stride: int
) -> None:
    maps = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)
    params = {"kernel": jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)}
    layer = layers.Conv(4, kernel, stride)

    def ours(maps: jax.Array, params: Any) -> jax.Array:
        out: Any = layer.apply({"params": params}, maps)
        return out

    def theirs(maps: jax.Array, params: Any) -> jax.Array:
        return convolved(maps, params["kernel"], stride)

    def gradients(function: Any) -> Any:
        return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=(0, 1))(maps, params)

    np.testing.assert_allclose(ours(maps, params), theirs(maps, params), rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradients(ours),
        gradients(theirs),
    )


@pytest.mark.parametrize("side", [1, 4, 7])
def test_the_max_pool_and_its_gradient_are_flaxs(rng: np.random.Generator, side: int) -> None:
    maps = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)

    def theirs(maps: jax.Array) -> jax.Array:
        padding: Any = ((1, 1), (1, 1))
        return nn.max_pool(maps, (3, 3), (2, 2), padding=padding)

    def gradient(function: Any) -> jax.Array:
        return jax.grad(lambda maps: jnp.sum(jnp.sin(function(maps))))(maps)

    np.testing.assert_array_equal(layers.max_pool(maps), theirs(maps))
    np.testing.assert_allclose(gradient(layers.max_pool), gradient(theirs), rtol=1e-6)
