"""Detects, on the device, which part of a training step is not finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# In the order of a step: the first part that is not finite causes the later ones.
_GIVEN = ("data", "parameters", "teacher")
_FOUND = ("loss", "gradient", "update")
PARTS = (*_GIVEN, *_FOUND)
_SCALE = 2.0**-40  # No sum of finite float32 numbers overflows, nor does a small one vanish.


def fault(parts: Mapping[str, Any]) -> Int[Array, ""]:
    """Returns the first part of a step that is not finite, if the results of the step are not.

    It costs one more pass over each part, and one number is fetched.

    Args:
        parts: Trees of arrays, by their names in `PARTS`: at least "loss", "gradient" and
            "update", which is the new state, the optimiser's included: of Adam, that can
            overflow while the parameters stay as they are.

    Returns:
        0 if these three are finite, even if another part is not (a teacher of weight 0); otherwise
        the number, from 1, of the first part in `PARTS` that is not finite.
    """
    whole = {name: is_finite(tree) for name, tree in parts.items()}
    found = jnp.zeros((), jnp.int32)
    for number, name in reversed(list(enumerate(PARTS, 1))):
        if name in whole:
            found = jnp.where(whole[name], found, number)
    return jnp.where(jnp.all(jnp.stack([whole[name] for name in _FOUND])), 0, found)


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether all numbers of a tree are finite; integers always are."""
    # On a CPU, a sum takes a third of the time of testing each number.
    sums = [
        jnp.sum(leaf.astype(jnp.float32) * _SCALE)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.isfinite(jnp.stack(sums))) if sums else jnp.array(True)
