"""A linear layer on a student's last maps or tokens that predicts features of its teacher.

During training its parameters are beside the student's, under the name `projection`, so that the
optimiser and the checkpoints treat them alike. Evaluation and export use the student without it.

Source: Romero et al. 2015, https://arxiv.org/abs/1412.6550 (the regressor).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.records import Key, Params, Variables

NAME = "projection"


class Target(NamedTuple):
    """The features of the teacher that a student predicts.

    Attributes:
        field: Field of `records.Outputs`: "patches" or "cls".
        side: Side of the teacher's grid of patches, in tokens.
        width: Number of features of a token.
    """

    field: str
    side: int
    width: int


def add(variables: Variables, key: Key, *, channels: int, width: int) -> Variables:
    """Adds a projection to the variables of a student: a LeCun normal kernel and a zero bias.

    Args:
        variables: Variables of the student.
        key: Random key of the kernel.
        channels: Number of channels of the student's last maps.
        width: Number of features of the teacher's tokens.
    """
    kernel = jax.nn.initializers.lecun_normal()(key, (channels, width), jnp.float32)
    new = {"kernel": kernel, "bias": jnp.zeros(width)}
    return {**variables, "params": {**variables["params"], NAME: new}}


def without(variables: Variables) -> Variables:
    """Removes the projection from the variables of a student, if it has one."""
    params = {name: tree for name, tree in variables["params"].items() if name != NAME}
    return {**variables, "params": params}


def patches(
    params: Params, maps: Float[Array, "batch rows columns channel"], side: int
) -> Float[Array, "batch token feature"]:
    """Predicts the teacher's patch tokens: projects the maps and resizes them to its grid.

    Resizing is bilinear, and averages if the grid is coarser. It commutes with the projection,
    which is therefore applied to the coarser of the two.

    Args:
        params: Parameters of the projection.
        maps: Last maps of the student.
        side: Side of the grid, in tokens.
    """
    if maps.shape[1] * maps.shape[2] > side**2:
        tokens = _linear(params, _resized(maps, side))
    else:
        tokens = _resized(_linear(params, maps), side)
    return tokens.reshape(tokens.shape[0], side**2, -1)


def cls(
    params: Params, maps: Float[Array, "batch rows columns channel"]
) -> Float[Array, "batch feature"]:
    """Predicts the teacher's [CLS] token: projects the means of the maps over all positions."""
    return _linear(params, jnp.mean(maps, axis=(1, 2), dtype=jnp.float32))


def grid(
    patches: Float[Array, "batch patch channel"],
) -> Float[Array, "batch rows columns channel"]:
    """Arranges the patch tokens of a ViT as maps."""
    side = math.isqrt(patches.shape[1])
    return patches.reshape(patches.shape[0], side, side, patches.shape[2])


def of_cls(params: Params, token: Float[Array, "batch channel"]) -> Float[Array, "batch feature"]:
    """Predicts the teacher's [CLS] token: projects the [CLS] token of the student."""
    return _linear(params, token.astype(jnp.float32))


def _linear(params: Params, values: Float[Array, "*some channel"]) -> Float[Array, "*some feature"]:
    """Applies the layer, in the type of the values."""
    kernel, bias = (params[name].astype(values.dtype) for name in ("kernel", "bias"))
    product = values @ kernel
    return product + jnp.broadcast_to(bias, product.shape)


def _resized(
    maps: Float[Array, "batch rows columns channel"], side: int
) -> Float[Array, "batch side side channel"]:
    return jax.image.resize(maps, (maps.shape[0], side, side, maps.shape[-1]), "bilinear")
