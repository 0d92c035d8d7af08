"""Named random streams: every use of randomness has its own stream.

A path names a stream, for example ("student", step, "crops"). A stream depends only on the seed
and its path, so a new stream does not change the others, and a resumed run draws the same numbers.
docs/reproducibility.md lists the streams.

On the device, a key is folded with the number of each part of the path in turn; on the host, these
numbers are the spawn key of a NumPy `SeedSequence`. The number of an integer is itself; that of a
name is its CRC-32 with the highest bit set, which no step, epoch or batch has.
"""

import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Integer, PRNGKeyArray

# Stages that train on images. Each has its own order of examples and its own augmentation.
Stage = Literal["teacher", "student", "decoder"]
Use = Literal[
    "colors",
    "critic",
    "crops",
    "cutmix",
    "dropout",
    "erasing",
    "evaluation",
    "expertness",
    "flips",
    "jitter",
    "mixup",
    "noise",
    "order",
    "parameters",
    "policy",
    "projection",
    "shuffle",
    "start",
    "unlabelled",
    "visualization",
]
Number = int | np.integer | Integer[Array, ""]

_NAME = 1 << 31  # The bit that distinguishes the number of a name from other numbers.


def key(seed: Number, *path: Stage | Use | Number) -> PRNGKeyArray:
    """Makes the JAX key of a stream.

    Args:
        seed: Seed of the run, or of one use of randomness; may be traced.
        path: Names and whole numbers from 0, such as a step; the numbers may be traced.
    """
    return within(jax.random.key(seed), *path)


def within(root: PRNGKeyArray, *path: Stage | Use | Number) -> PRNGKeyArray:
    """Continues the path of a key: `within(key(0, "student"), 7)` is `key(0, "student", 7)`."""
    for part in path:
        root = jax.random.fold_in(root, _number(part) if isinstance(part, str) else part)
    return root


class JitWithKey:
    """A jitted function that draws random numbers, compiled once for all keys.

    If a jitted function closes over its key, the key is a constant of the compiled program. Here it
    is an argument, so runs that differ only in their seed share the program in the cache.
    """

    def __init__(
        self,
        make: Callable[..., Callable[..., Any]],
        key: PRNGKeyArray,
        *,
        donate_argnums: tuple[int, ...] = (),
        **options: Any,
    ) -> None:
        """Jits a function; nothing is traced yet.

        Args:
            make: Builds the function; called with `key=`, a traced key.
            key: Random key of the function.
            donate_argnums: As in `jax.jit`; indices of the function's arguments, without the key.
            **options: Other options of `jax.jit`.
        """

        def step(key: PRNGKeyArray, *arguments: Any, **named: Any) -> Any:
            return make(key=key)(*arguments, **named)

        donated = tuple(1 + number for number in donate_argnums)
        self._jitted, self._key = jax.jit(step, donate_argnums=donated, **options), key

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls the compiled function."""
        return self._jitted(self._key, *arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """Lowers the function like `jax.jit(...).lower`, also for devices of another machine."""
        key = jax.ShapeDtypeStruct(self._key.shape, self._key.dtype)
        return self._jitted.lower(key, *arguments, **named)


def generator(seed: int, *path: Stage | Use | int) -> np.random.Generator:
    """Makes the NumPy generator of a stream, for what the host draws; see `key`."""
    numbers = tuple(_number(part) if isinstance(part, str) else part for part in path)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))


def _number(name: str) -> int:
    return zlib.crc32(name.encode()) | _NAME
