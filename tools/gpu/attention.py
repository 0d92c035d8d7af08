"""Compares our attention in bfloat16 with plain attention in float32, with gradients."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax.models import encoder
from tools.gpu import worker

REPEATS = 20


class Shape(NamedTuple):
    """Size of the input of an attention layer."""

    batch: int
    tokens: int
    heads: int
    features: int


def plain(params: Any, tokens: jax.Array) -> jax.Array:
    """Computes attention step by step, from parameters with the names of Flax."""

    def projected(name: str) -> jax.Array:
        layer = params[name]
        return jnp.einsum("btf,fhd->bhtd", tokens, layer["kernel"]) + layer["bias"][:, None]

    query, key, value = (projected(name) for name in ("query", "key", "value"))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
    mixed = jnp.einsum("bhqk,bhkd->bqhd", jax.nn.softmax(scores), value)
    return jnp.einsum("bqhd,hdf->bqf", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def compare(
    context: worker.Context, report: worker.Report, seconds: float, *, shape: list[int]
) -> worker.Found:
    """Returns errors, time and memory of a training pass of attention, by number of tokens.

    "ours" is our attention; "plain" is plain attention in bfloat16, whose only errors come from
    rounding.
    """
    del seconds
    size = Shape(*shape)
    tasks = {
        str(tokens): lambda tokens=tokens: _compared(size._replace(tokens=tokens), context.tiny)
        for tokens in (size.tokens, size.tokens + 1)
    }
    return worker.run_each({}, tasks.items(), report)


def _compared(size: Shape, tiny: bool) -> dict[str, Any]:
    attention = encoder.Attention(size.heads, jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (size.batch, size.tokens, size.features)
    tokens, direction = (jax.random.normal(key, shape) for key in keys[:2])
    params = attention.init(keys[2], tokens, tokens)["params"]

    def ours(params: Any, tokens: jax.Array) -> jax.Array:
        half = tokens.astype(jnp.bfloat16)
        return attention.apply({"params": params}, half, half)  # pyright: ignore[reportReturnType]

    def rounded(params: Any, tokens: jax.Array) -> jax.Array:
        half: Any = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, tokens))
        return plain(*half)

    on_cpu = jax.device_put((params, tokens), jax.devices("cpu")[0])
    expected = jax.device_get(_trained(plain, np.asarray(direction))(*on_cpu))
    repeats = 2 if tiny else REPEATS
    return {
        name: _measured(_trained(attend, direction), params, tokens, expected, repeats)
        for name, attend in (("ours", ours), ("plain", rounded))
    }


def _measured(jitted: Any, params: Any, tokens: Any, expected: Any, repeats: int) -> dict[str, Any]:
    """Returns errors, milliseconds and memory of a training pass."""
    compiled = jitted.lower(params, tokens).compile()
    return _errors(compiled(params, tokens), expected) | {
        "milliseconds": 1000 * _seconds(lambda: compiled(params, tokens), repeats),
        "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
    }


def _trained(attend: Callable[..., jax.Array], direction: jax.Array | np.ndarray) -> Any:
    """Returns a jitted function: the output, and the gradient of its product with a direction."""

    def product(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(params, tokens).astype(jnp.float32)
        return jnp.sum(out * direction), out

    return jax.jit(jax.value_and_grad(product, argnums=(0, 1), has_aux=True))


def _errors(computed: Any, expected: Any) -> dict[str, float]:
    """Returns relative errors of the output and of the gradients for tokens and parameters."""
    ((_, out), (by_params, by_tokens)) = computed
    ((_, out_), (by_params_, by_tokens_)) = expected
    pairs = {
        "output": (out, out_),
        "tokens": (by_tokens, by_tokens_),
        "parameters": (by_params, by_params_),
    }
    return {name: _distance(*pair) for name, pair in pairs.items()}


def _distance(computed: Any, expected: Any) -> float:
    """Returns the distance of two trees, relative to the norm of the expected one."""
    actual, wanted = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (computed, expected)
    )
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """Returns the median seconds of a call."""
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)
