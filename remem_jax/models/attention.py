"""Multi-head attention, by cuDNN's flash attention where a GPU computes it in half precision."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax import platforms
from remem_jax.models.rematerialisation import kept

_HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


class Attention(nn.Module):
    """Multi-head attention, under the names and shapes of Flax's own.

    Attributes:
        heads: Number of heads; divides the features.
        dtype: Type of the computation.
        kernel_init: Initialiser of the kernels.
    """

    heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch query feature"],
        tokens: Float[Array, "batch token feature"],
    ) -> Float[Array, "batch query feature"]:
        width = queries.shape[-1]
        shape = (self.heads, width // self.heads)
        common: dict[str, Any] = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        query, key, value = (
            kept(name, nn.DenseGeneral(shape, name=name, **common)(source))
            for name, source in (("query", queries), ("key", tokens), ("value", tokens))
        )
        mixed = dot_product_attention(query, key, value)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out", **common)(mixed)


def dot_product_attention(
    query: Float[Array, "batch query head part"],
    key: Float[Array, "batch token head part"],
    value: Float[Array, "batch token head part"],
) -> Float[Array, "batch query head part"]:
    """Attention in the implementation of the platform that it is compiled for.

    On CUDA, in half precision, it is cuDNN's flash attention, which stores no scores: its memory
    is linear in the number of tokens. Everywhere else it is `plain`. To compile or export for
    CUDA where there is no GPU, install JAX's CUDA plugin: tracing asks it for the version of
    cuDNN. Without it, CUDA gets `plain` too.
    """
    if not has_flash(query.dtype, query.shape[-1]):
        return plain(query, key, value)
    flash = functools.partial(padded, implementation="cudnn")
    return platforms.dependent(query, key, value, cuda=flash, default=plain)


def has_flash(dtype: Any, head_features: int) -> bool:
    """Whether CUDA computes attention by cuDNN's flash attention.

    Args:
        dtype: Of query, key and value.
        head_features: Features of one head.
    """
    if jnp.dtype(dtype) not in _HALF or head_features % 8 or head_features > 128:
        return False
    if jax.default_backend() == "gpu" and platforms.is_old(jax.devices()[0]):
        return False
    return _can_trace_cudnn()


@functools.cache
def _can_trace_cudnn() -> bool:
    """Whether JAX finds cuDNN, of a version that knows the GPU if there is one."""
    sample = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(padded, implementation="cudnn"), sample, sample, sample)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def plain(
    query: Float[Array, "batch query head part"],
    key: Float[Array, "batch token head part"],
    value: Float[Array, "batch token head part"],
) -> Float[Array, "batch query head part"]:
    """Attention as two batched products with the heads leading; the softmax is in float32."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    if query.dtype == jnp.float32:
        query, scale = query * scale, 1.0  # There are fewer queries than scores.
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2))
    return kept("attention", jnp.swapaxes(jnp.matmul(_softmax(scores, scale), value), 1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(
    scores: Float[Array, "batch head query token"], scale: float
) -> Float[Array, "batch head query token"]:
    """Softmax of scaled scores, taken in float32; backward it keeps the rounded result alone."""
    return jax.nn.softmax(scores.astype(jnp.float32) * scale, axis=-1).astype(scores.dtype)


def _softmax_forward(scores: Array, scale: float) -> tuple[Array, Array]:
    shares: Any = _softmax(scores, scale)
    return shares, shares


def _softmax_backward(scale: float, shares: Array, slope: Array) -> tuple[Array]:
    wide, slope = shares.astype(jnp.float32), slope.astype(jnp.float32)
    product = wide * slope
    change = product - wide * jnp.sum(product, axis=-1, keepdims=True)
    return ((change * scale).astype(shares.dtype),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def padded(
    query: Float[Array, "batch query head part"],
    key: Float[Array, "batch token head part"],
    value: Float[Array, "batch token head part"],
    *,
    implementation: Any,
) -> Float[Array, "batch query head part"]:
    """Attention by `jax.nn.dot_product_attention`, for any number of queries and of tokens.

    JAX refuses to differentiate cuDNN's attention for odd numbers, so that one query or token is
    added where the number is odd; it is masked, and nothing of it is returned.

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
    array: Float[Array, "batch token head part"],
) -> Float[Array, "batch even head part"]:
    """The array with a token of zeros more where their number is odd."""
    return jnp.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, 0), (0, 0)))
