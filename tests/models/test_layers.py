"""Fast implementations of layers agree with XLA's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax.models import layers
from tests.oracles import peers


def convolved(
    maps: jax.Array, kernel: jax.Array, stride: int, *, padding: str = "torch", groups: int = 1
) -> jax.Array:
    """Convolves with XLA."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        "SAME" if padding == "same" else [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def assert_same_with_gradients(ours: Any, theirs: Any, *arguments: Any) -> None:
    """Compares two functions of two arguments and the gradients of the sum of their sines."""

    def outcome(function: Any) -> Any:
        gradients = jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), (0, 1))
        return jax.jit(lambda *a: (function(*a), gradients(*a)))(*arguments)

    # float32 error of sums of up to 150 products and of gradients over up to 200 outputs.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        outcome(ours),
        outcome(theirs),
    )


@pytest.mark.parametrize("padding", layers.PADDINGS)
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (4, 3), (6, 5)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2), (7, 2)])
def test_a_convolution_and_its_gradients_match_xla(
    rng: np.random.Generator, sides: tuple[int, int], kernel: int, stride: int, padding: str
) -> None:
    maps = jnp.asarray(rng.normal(size=(2, *sides, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)
    layer = layers.Conv(4, kernel, stride, padding)

    assert_same_with_gradients(
        lambda maps, kernel: layer.apply({"params": {"kernel": kernel}}, maps),
        lambda maps, kernel: convolved(maps, kernel, stride, padding=padding),
        maps,
        weights,
    )


@pytest.mark.parametrize("padding", layers.PADDINGS)
@pytest.mark.parametrize("sides", [(1, 1), (5, 4), (6, 7)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_and_its_gradients_match_xla(
    rng: np.random.Generator, sides: tuple[int, int], kernel: int, stride: int, padding: str
) -> None:
    maps = jnp.asarray(rng.normal(size=(2, *sides, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, 1, 3)), jnp.float32)
    layer = layers.DepthwiseConv(kernel, stride, padding)

    assert_same_with_gradients(
        lambda maps, kernel: layer.apply({"params": {"kernel": kernel}}, maps),
        lambda maps, kernel: convolved(maps, kernel, stride, padding=padding, groups=3),
        maps,
        weights,
    )


@pytest.mark.parametrize("sides", [(1, 1), (5, 4), (12, 9)])
@pytest.mark.parametrize("member", [1, 8, 24])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_grouped_convolution_and_its_gradients_match_xla(
    rng: np.random.Generator, sides: tuple[int, int], member: int, stride: int
) -> None:
    maps = jnp.asarray(rng.normal(size=(2, *sides, 72)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 3, member, 72)), jnp.float32)
    layer = layers.Conv(72, 3, stride, groups=72 // member)

    assert_same_with_gradients(
        lambda maps, kernel: layer.apply({"params": {"kernel": kernel}}, maps),
        lambda maps, kernel: convolved(maps, kernel, stride, groups=72 // member),
        maps,
        weights,
    )


def test_a_convolution_adds_its_bias(rng: np.random.Generator) -> None:
    maps = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    params = {"kernel": jnp.ones((1, 1, 3, 2)), "bias": jnp.asarray([1.0, -2.0])}

    out: Any = layers.Conv(2, 1, has_bias=True).apply({"params": params}, maps)

    expected = maps.sum(-1, keepdims=True) + np.asarray([1, -2], np.float32).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def normalised(train: bool) -> Any:
    """Returns a function of maps, scale and bias with BatchNorm's output and statistics."""

    def function(maps: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
        statistics = {"mean": jnp.full(3, 0.5), "var": jnp.full(3, 2.0)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
        layer = layers.BatchNorm(momentum=0.8, epsilon=1e-3)
        return layer.apply(variables, maps, train=train, mutable=["batch_stats"])

    return function


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_and_its_gradients_match_torch(rng: np.random.Generator, train: bool) -> None:
    torch = peers.torch()
    maps = rng.normal(1, 2, (2, 3, 5, 3)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 3)).astype(np.float32)
    theirs = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.2, dtype=torch.float64).train(train)
    torch.nn.init.constant_(theirs.running_mean, 0.5)
    torch.nn.init.constant_(theirs.running_var, 2.0)
    for parameter, value in ((theirs.weight, scale), (theirs.bias, bias)):
        parameter.data = torch.tensor(value, dtype=torch.float64)
    nchw = torch.tensor(maps, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    torch.sin(theirs(nchw)).sum().backward()

    def loss(*arguments: jax.Array) -> Any:
        out, updates = normalised(train)(*arguments)
        return jnp.sum(jnp.sin(out)), updates

    grads, updates = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
        jnp.asarray(maps), jnp.asarray(scale), jnp.asarray(bias)
    )

    expected = (nchw.grad.permute(0, 2, 3, 1), theirs.weight.grad, theirs.bias.grad)
    for actual, reference in zip(grads, expected, strict=True):
        np.testing.assert_allclose(
            actual, reference, rtol=1e-4, atol=1e-5
        )  # float32 sums of 30 terms.
    statistics = updates["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], theirs.running_var, rtol=1e-5)


def test_batch_norm_computes_its_statistics_in_float32(rng: np.random.Generator) -> None:
    maps = jnp.asarray(rng.normal(3, 1, (8, 16, 16, 3)), jnp.bfloat16)

    out, updates = normalised(True)(maps, jnp.ones(3), jnp.zeros(3))

    mean = np.asarray(maps, np.float64).mean((0, 1, 2))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.4 + 0.2 * mean, rtol=1e-5)


def test_the_variance_is_exact_for_a_large_known_mean() -> None:
    maps = jnp.asarray(1e4 + np.tile([-1.0, 1.0], 8).reshape(4, 2, 2, 1), jnp.float32)
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.full(1, 1e4), "var": jnp.ones(1)},
    }

    out: Any
    out, _ = layers.BatchNorm().apply(variables, maps, train=True, mutable=["batch_stats"])

    np.testing.assert_allclose(np.abs(out), 1.0, rtol=1e-4)


@pytest.mark.parametrize("side", [1, 4, 7])
def test_the_max_pool_and_its_gradient_match_flax(rng: np.random.Generator, side: int) -> None:
    maps = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)

    def theirs(maps: jax.Array) -> jax.Array:
        padding: Any = ((1, 1), (1, 1))
        return nn.max_pool(maps, (3, 3), (2, 2), padding=padding)

    def gradient(function: Any) -> jax.Array:
        return jax.grad(lambda maps: jnp.sum(jnp.sin(function(maps))))(maps)

    def ours(maps: jax.Array) -> Any:
        return layers.MaxPool().apply({}, maps)

    np.testing.assert_array_equal(ours(maps), theirs(maps))
    np.testing.assert_allclose(gradient(ours), gradient(theirs), rtol=1e-6)


@pytest.mark.parametrize("sides", [(1, 1), (4, 6), (5, 4)])
def test_the_average_pool_and_its_gradient_match_torch(
    rng: np.random.Generator, sides: tuple[int, int]
) -> None:
    torch = peers.torch()
    maps = rng.normal(size=(2, *sides, 3)).astype(np.float32)
    nchw = torch.tensor(maps.transpose(0, 3, 1, 2), requires_grad=True)
    pool = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    out = pool(nchw)
    torch.sin(out).sum().backward()

    def ours(maps: jax.Array) -> Any:
        return layers.AveragePool().apply({}, maps)

    gradient = jax.grad(lambda maps: jnp.sum(jnp.sin(ours(maps))))(jnp.asarray(maps))

    expected = out.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(jnp.asarray(maps)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        gradient, nchw.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (layers.Conv(4, 1), "stablehlo.convolution"),
        (layers.Conv(4, 3), "stablehlo.convolution"),
        (layers.DepthwiseConv(3), "stablehlo.convolution"),
        (layers.MaxPool(), "stablehlo.reduce_window"),
        (layers.AveragePool(), "stablehlo.reduce_window"),
    ],
    ids=["pointwise", "small", "depthwise", "max_pool", "average_pool"],
)
def test_each_layer_is_one_operation_except_on_cpus(layer: nn.Module, operation: str) -> None:
    maps = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), maps)
    traced = jax.jit(layer.apply).trace(variables, maps)

    actual = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count(operation)
        for platform in ("cpu", "cuda", "tpu")
    }

    assert actual == {"cpu": 0, "cuda": 1, "tpu": 1}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_grouped_convolution_is_one_operation_except_on_cpus(platform: str) -> None:
    maps, layer = jax.ShapeDtypeStruct((2, 4, 4, 64), jnp.float32), layers.Conv(64, 3, groups=64)
    variables = jax.eval_shape(layer.init, jax.random.key(0), maps)
    lowered = jax.jit(layer.apply).trace(variables, maps).lower(lowering_platforms=(platform,))

    assert lowered.as_text().count("stablehlo.convolution") == 1
