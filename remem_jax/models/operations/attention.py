"""Attention, by cuDNN's flash attention where a GPU computes it in half precision."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import platforms
from remem_jax.models.rematerialisation import kept

_is_unfused: contextvars.ContextVar[bool] = contextvars.ContextVar("unfused", default=False)
_HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def dot_product_attention(
    query: Float[Array, "batch query head feature"],
    key: Float[Array, "batch token head feature"],
    value: Float[Array, "batch token head feature"],
) -> Float[Array, "batch query head feature"]:
    """Computes attention, in the implementation of the platform that is compiled for.

    In half precision, CUDA gets cuDNN's flash attention, which stores no scores: its memory is
    linear in the number of tokens. Everything else gets `plain`. To compile or export for CUDA on
    a machine without a GPU, install JAX's CUDA plugin, which tracing asks for the version of cuDNN.
    Without the plugin, CUDA gets `plain` too.
    """
    if _is_unfused.get() or not has_flash(query.dtype, query.shape[-1]):
        return plain(query, key, value)
    flash = functools.partial(padded, implementation="cudnn")
    return platforms.dependent(query, key, value, cuda=flash, default=plain)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Makes `dot_product_attention` trace `plain` alone.

    A program for several platforms cannot contain cuDNN's attention, which the others lack.
    """
    token = _is_unfused.set(True)
    try:
        yield
    finally:
        _is_unfused.reset(token)


def has_flash(dtype: Any, head_features: int) -> bool:
    """Returns whether CUDA gets cuDNN's flash attention.

    Args:
        dtype: Type of query, key and value.
        head_features: Number of features of one head.
    """
    if jnp.dtype(dtype) not in _HALF or head_features % 8 or head_features > 128:
        return False
    if jax.default_backend() == "gpu" and platforms.is_old(jax.devices()[0]):
        return False
    return _can_trace_cudnn()


@functools.cache
def _can_trace_cudnn() -> bool:
    """Returns whether JAX finds a cuDNN that supports the GPU, if there is one."""
    sample = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(padded, implementation="cudnn"), sample, sample, sample)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def plain(
    query: Float[Array, "batch query head feature"],
    key: Float[Array, "batch token head feature"],
    value: Float[Array, "batch token head feature"],
) -> Float[Array, "batch query head feature"]:
    """Computes attention as two batched matrix products, and the softmax in float32."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    if query.dtype == jnp.float32:
        query, scale = query * scale, 1.0  # Cheaper: there are fewer queries than scores.
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2))
    return kept("attention", jnp.swapaxes(jnp.matmul(_softmax(scores, scale), value), 1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(
    scores: Float[Array, "batch head query token"], scale: float
) -> Float[Array, "batch head query token"]:
    """Computes the softmax of scaled scores in float32; its backward pass needs only its result."""
    return jax.nn.softmax(scores.astype(jnp.float32) * scale, axis=-1).astype(scores.dtype)


def _softmax_forward(scores: Array, scale: float) -> tuple[Array, Array]:
    shares: Any = _softmax(scores, scale)
    return shares, shares


def _softmax_backward(scale: float, shares: Array, cotangent: Array) -> tuple[Array]:
    wide, cotangent = shares.astype(jnp.float32), cotangent.astype(jnp.float32)
    product = wide * cotangent
    change = product - wide * jnp.sum(product, axis=-1, keepdims=True)
    return ((change * scale).astype(shares.dtype),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def padded(
    query: Float[Array, "batch query head feature"],
    key: Float[Array, "batch token head feature"],
    value: Float[Array, "batch token head feature"],
    *,
    implementation: Any,
) -> Float[Array, "batch query head feature"]:
    """Computes attention by `jax.nn.dot_product_attention`, for any number of queries and tokens.

    JAX cannot differentiate cuDNN's attention for odd numbers. If a number is odd, a masked query
    or token is added, and removed from the result.

    Args:
        query: The queries.
        key: Keys of the tokens.
        value: Values of the tokens.
        implementation: "cudnn", or "xla" to test the padding and the mask on any platform.
    """
    batch, queries, tokens = query.shape[0], query.shape[1], key.shape[1]
    masks: dict[str, Any] = {}
    if queries % 2 or tokens % 2:
        masks = {
            "query_seq_lengths": jnp.full((batch,), queries, jnp.int32),
            "key_value_seq_lengths": jnp.full((batch,), tokens, jnp.int32),
        }
    mixed = jax.nn.dot_product_attention(
        *map(_even, (query, key, value)), implementation=implementation, **masks
    )
    return mixed[:, :queries]


def _even(
    array: Float[Array, "batch token head feature"],
) -> Float[Array, "batch even head feature"]:
    """Appends a token of zeros if the number of tokens is odd."""
    return jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0)))
