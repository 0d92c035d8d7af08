"""Each implementation of attention agrees with Flax's and with float64."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax.models.attention import Attention
from remem_jax.models.operations import attention

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def drawn(
    rng: np.random.Generator, queries: int, tokens: int, *, features: int = 8, dtype: Any = None
) -> Arrays:
    """Draws query, key and value of two heads."""
    query, key, value = (
        jnp.asarray(rng.normal(size=(2, length, 2, features)), dtype or jnp.float32)
        for length in (queries, tokens, tokens)
    )
    return query, key, value


def with_gradients(attend: Any) -> Any:
    """Wraps attention to return its output and the gradients of the sum of its sines."""

    def outcome(*arrays: jax.Array) -> Any:
        total = lambda *a: jnp.sum(jnp.sin(attend(*a).astype(jnp.float32)))  # noqa: E731
        return attend(*arrays), jax.grad(total, (0, 1, 2))(*arrays)

    return jax.jit(outcome)


def in_float64(query: Any, key: Any, value: Any) -> np.ndarray:
    """Computes attention by its formula in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    scores = np.einsum("bqhf,bthf->bhqt", query, key) / np.sqrt(query.shape[-1])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqt,bthf->bqhf", shares / shares.sum(-1, keepdims=True), value)


def test_attention_matches_flax(rng: np.random.Generator, key: jax.Array) -> None:
    tokens = jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32)
    queries = jnp.asarray(rng.normal(size=(2, 3, 12)), jnp.float32)
    theirs = nn.MultiHeadDotProductAttention(3)
    params = theirs.init(key, queries, tokens)

    actual: Any = Attention(3, jnp.float32).apply(params, queries, tokens)

    expected: Any = theirs.apply(params, queries, tokens)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "tokens"), [(5, 5), (17, 17), (196, 196), (197, 197), (257, 257), (1, 17), (1, 16)]
)
@pytest.mark.usefixtures("mixed_dtypes")
def test_padding_tokens_change_neither_attention_nor_its_gradients(
    rng: np.random.Generator, queries: int, tokens: int
) -> None:
    arrays = drawn(rng, queries, tokens)

    actual = with_gradients(functools.partial(attention.padded, implementation="xla"))(*arrays)

    expected = with_gradients(attention.plain)(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_in_half_precision_are_close_to_float32(
    rng: np.random.Generator, dtype: str
) -> None:
    halves = drawn(rng, 7, 9, features=12, dtype=dtype)
    wide: Any = tuple(array.astype(jnp.float32) for array in halves)

    out, gradients = with_gradients(attention.plain)(*halves)

    expected, exact = with_gradients(attention.plain)(*wide)
    np.testing.assert_allclose(expected, in_float64(*wide), atol=1e-6)
    for actual, reference in ((out, expected), *zip(gradients, exact, strict=True)):
        assert actual.dtype == dtype
        error = np.linalg.norm(actual.astype(np.float32) - reference) / np.linalg.norm(reference)
        assert error < (
            0.02 if dtype == "bfloat16" else 0.003
        )  # The error of a few roundings to 2**-9 or 2**-12.


def test_the_backward_pass_stores_scores_only_in_the_compute_dtype(
    rng: np.random.Generator,
) -> None:
    arrays = drawn(rng, 6, 10, dtype="bfloat16")

    _, backward = jax.vjp(attention.plain, *arrays)

    scores = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape[-2:] == (6, 10)]
    assert [leaf.dtype for leaf in scores] == ["bfloat16"]


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes cuDNN's attention traceable on machines without cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    attention._can_trace_cudnn.cache_clear()
    yield
    attention._can_trace_cudnn.cache_clear()


def lowered(function: Any, platform: str, *arrays: Any) -> str:
    """Returns the program that is passed to the compiler of a platform."""
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("tokens", [196, 197])
@pytest.mark.parametrize(
    ("platform", "dtype", "features", "flash"),
    [
        ("cuda", "bfloat16", 64, True),
        ("cuda", "float16", 64, True),
        ("cuda", "float32", 64, False),
        ("cuda", "bfloat16", 12, False),
        ("cuda", "bfloat16", 136, False),
        ("rocm", "bfloat16", 64, False),
        ("tpu", "bfloat16", 64, False),
        ("cpu", "bfloat16", 64, False),
    ],
)
@pytest.mark.usefixtures("cudnn", "mixed_dtypes")
def test_cuda_uses_flash_attention_in_half_precision(
    platform: str, dtype: str, features: int, tokens: int, flash: bool
) -> None:
    shape = jax.ShapeDtypeStruct((2, tokens, 1, features), dtype)

    text = lowered(attention.dot_product_attention, platform, shape, shape, shape)

    assert ("cudnn$fmha" in text) == flash
    assert (f"{tokens}x{tokens}" in text) != flash  # The shape of the scores.


@pytest.mark.parametrize(("queries", "tokens"), [(197, 197), (1, 197)])
@pytest.mark.usefixtures("cudnn", "mixed_dtypes")
def test_flash_attention_has_gradients_for_odd_numbers_of_tokens(queries: int, tokens: int) -> None:
    query, key = (jax.ShapeDtypeStruct((2, n, 1, 64), jnp.bfloat16) for n in (queries, tokens))

    text = lowered(with_gradients(attention.dot_product_attention), "cuda", query, key, key)

    assert "cudnn$fmhaSoftmaxBackward" in text


def test_cuda_without_cudnn_uses_plain_attention() -> None:
    shape = jax.ShapeDtypeStruct((2, 17, 1, 64), jnp.bfloat16)

    text = lowered(attention.dot_product_attention, "cuda", shape, shape, shape)

    assert "17x17" in text


@pytest.mark.parametrize(
    ("capability", "flash"), [("7.5", False), ("8.0", True), ("12.0", True), (None, True)]
)
@pytest.mark.usefixtures("cudnn", "mixed_dtypes")
def test_gpus_older_than_ampere_do_not_use_flash_attention(
    monkeypatch: pytest.MonkeyPatch, capability: str | None, flash: bool
) -> None:
    assert attention.has_flash(jnp.bfloat16, 64)  # The result is cached.
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])

    assert attention.has_flash(jnp.bfloat16, 64) == flash


def test_exports_for_several_platforms_have_no_attention_of_one_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "has_flash", lambda *_: True)
    sample = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.float16)

    def traced() -> Any:
        jax.clear_caches()
        return jax.make_jaxpr(attention.dot_product_attention)(sample, sample, sample)

    with attention.unfused():
        alone = traced()

    assert "cudnn" not in str(alone)
    assert not any(equation.primitive.name == "cond" for equation in alone.eqns)
