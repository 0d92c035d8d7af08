"""Linear layers on a student's maps or tokens that predict features of its teacher.

During training their parameters are beside the student's, under the name `projection`, so that the
optimiser and the checkpoints treat them alike. Evaluation and export use the student without them.
A single layer has no name of its own.

Source: Romero et al. 2015, https://arxiv.org/abs/1412.6550 (the regressor).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.records import Key, Params, Variables

NAME = "projection"


class Target(NamedTuple):
    """The features of the teacher that a student predicts.

    Attributes:
        field: Field of `records.Outputs`: "patches", "cls", "pooled" or "layers".
        side: Side of the teacher's grid of patches, in tokens.
        width: Number of features of a token.
        layers: Number of the teacher's `layers`.
    """

    field: str
    side: int
    width: int
    layers: int = 0


def channels(targets: Sequence[Target], stages: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Returns the inputs and outputs of the linear layers that predict some targets, by name.

    The layers that predict the teacher's `layers` are named `layer_1` and so on.

    Args:
        targets: What a student predicts.
        stages: Number of channels of each stage of the student.
    """
    layers: dict[str, tuple[int, int]] = {}
    for target in targets:
        if target.field == "layers":
            for i, inputs in enumerate(stages[-target.layers :], 1):
                layers[f"layer_{i}"] = inputs, target.width
        else:
            layers[target.field] = stages[-1], target.width
    return layers


def add(variables: Variables, key: Key, layers: Mapping[str, tuple[int, int]]) -> Variables:
    """Adds a projection to the variables of a student: LeCun normal kernels and zero biases.

    Args:
        variables: Variables of the student.
        key: Random key of the kernels.
        layers: From `channels`.
    """
    keys = [key] if len(layers) == 1 else jax.random.split(key, len(layers))
    trees = {
        name: {
            "kernel": jax.nn.initializers.lecun_normal()(layer_key, shape, jnp.float32),
            "bias": jnp.zeros(shape[1]),
        }
        for layer_key, (name, shape) in zip(keys, layers.items(), strict=True)
    }
    # A single layer is stored as in checkpoints of earlier versions.
    new = next(iter(trees.values())) if len(trees) == 1 else trees
    return {**variables, "params": {**variables["params"], NAME: new}}


def layer(params: Params, name: str) -> Params:
    """Returns the parameters of a linear layer among the parameters of a student."""
    return params[NAME].get(name, params[NAME])


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
        params: Parameters of the linear layer.
        maps: Maps of the student.
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
