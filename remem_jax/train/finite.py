"""Detects, on the device, which part of a training step is not finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# In the order of a step: the first part that is not finite causes the later ones.
_INPUTS = ("data", "parameters", "teacher")
_RESULTS = ("loss", "gradient", "update")
PARTS = (*_INPUTS, *_RESULTS)
_SCALE = 2.0**-40  # With this factor, no sum of finite float32 numbers overflows.


def fault(parts: Mapping[str, Any]) -> Int[Array, ""]:
    """Returns the first part of a step that is not finite, if the results of the step are not.

    It costs one more pass over each part; the host fetches one number.

    Args:
        parts: Trees of arrays, by their names in `PARTS`: at least "loss", "gradient" and
            "update". The update is the new state, including the optimiser's: Adam's can overflow
            while the parameters do not change.

    Returns:
        0 if these three are finite, even if another part is not (a teacher of weight 0); otherwise
        the number, from 1, of the first part in `PARTS` that is not finite.
    """
    finite = {name: is_finite(tree) for name, tree in parts.items()}
    first = jnp.zeros((), jnp.int32)
    for number, name in reversed(list(enumerate(PARTS, 1))):
        if name in finite:
            first = jnp.where(finite[name], first, number)
    return jnp.where(jnp.all(jnp.stack([finite[name] for name in _RESULTS])), 0, first)


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether all numbers of a tree are finite; integers always are."""
    # On a CPU, a sum takes a third of the time of testing each number.
    sums = [
        jnp.sum(leaf.astype(jnp.float32) * _SCALE)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.isfinite(jnp.stack(sums))) if sums else jnp.array(True)
