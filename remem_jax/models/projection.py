"""How a student predicts features of its teacher: one linear layer on its last maps.

Its parameters lie beside the student's own while it trains, under a name of their own, so that
optimiser and checkpoints treat them alike. A student is measured, kept and exported without them.

Source: Romero et al. 2015, https://arxiv.org/abs/1412.6550 (the regressor).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.records import Key, Params, Variables

NAME = "projection"


class Target(NamedTuple):
    """Which features of a teacher a student predicts.

    Attributes:
        field: Of `records.Outputs`: "patches" or "cls".
        side: Of the teacher's grid of patches, in tokens.
        width: Of a token.
    """

    field: str
    side: int
    width: int


def add(variables: Variables, key: Key, *, channels: int, width: int) -> Variables:
    """Variables of a student with a new projection: LeCun's normal kernel, no bias yet.

    Args:
        variables: Of the student.
        key: Source of the kernel.
        channels: Of the student's last maps.
        width: Of the teacher's tokens.
    """
    kernel = jax.nn.initializers.lecun_normal()(key, (channels, width), jnp.float32)
    new = {"kernel": kernel, "bias": jnp.zeros(width)}
    return {**variables, "params": {**variables["params"], NAME: new}}


def without(variables: Variables) -> Variables:
    """Variables of a student as they are without a projection, if it has one."""
    own = {name: tree for name, tree in variables["params"].items() if name != NAME}
    return {**variables, "params": own}


def patches(
    params: Params, maps: Float[Array, "batch rows columns channel"], side: int
) -> Float[Array, "batch token feature"]:
    """Tokens of a teacher's patches: the maps, projected and resized to its grid.

    Resizing is bilinear, and averages where the grid is coarser. It commutes with the projection,
    which is therefore done on the coarser of the two.

    Args:
        params: Of the projection.
        maps: The student's last.
        side: Of the grid, in tokens.
    """
    if maps.shape[1] * maps.shape[2] > side**2:
        tokens = _linear(params, _resized(maps, side))
    else:
        tokens = _resized(_linear(params, maps), side)
    return tokens.reshape(tokens.shape[0], side**2, -1)


def cls(
    params: Params, maps: Float[Array, "batch rows columns channel"]
) -> Float[Array, "batch feature"]:
    """A teacher's [CLS] token: the means of the maps over all positions, projected."""
    return _linear(params, jnp.mean(maps, axis=(1, 2), dtype=jnp.float32))


def _linear(params: Params, values: Float[Array, "*some channel"]) -> Float[Array, "*some feature"]:
    """In the type of the values, which is that of the computation."""
    kernel, bias = (params[name].astype(values.dtype) for name in ("kernel", "bias"))
    found = values @ kernel
    return found + jnp.broadcast_to(bias, found.shape)


def _resized(
    maps: Float[Array, "batch rows columns channel"], side: int
) -> Float[Array, "batch side side channel"]:
    return jax.image.resize(maps, (maps.shape[0], side, side, maps.shape[-1]), "bilinear")
