"""The features inside a network that losses compare: maps of a CNN's stages, tokens of a ViT.

They are those of four places at most, the last of which is the end of the trunk. In a CNN these are
the last maps of each size, of the smallest four sizes; in a ViT the tokens after the last block of
each quarter of its blocks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from remem_jax.models import encoder, vit
from remem_jax.records import Variables

_MOST = 4


class Stage(NamedTuple):
    """The output of a stage of a student.

    Attributes:
        name: Name of the module with this output; "" for the trunk itself, or a ViT's blocks.
        channels: Number of channels of its maps or tokens.
    """

    name: str
    channels: int


def blocks(depth: int) -> tuple[int, ...]:
    """Returns the indices of the blocks of a ViT that end its quarters; all if there are fewer."""
    number = min(_MOST, depth)
    return tuple(-(-depth * i // number) - 1 for i in range(1, number + 1))


@functools.cache
def of_student(model: nn.Module, image_size: int) -> tuple[Stage, ...]:
    """Returns the stages of a student for images of a size, from the first to the last."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    by_side: dict[int, Stage] = {}

    def note(name: str, out: Array) -> None:
        by_side[out.shape[1]] = Stage(name, out.shape[-1])

    init = functools.partial(model.init_with_output, method="trunk")
    with _observed(note):
        last, _ = jax.eval_shape(init, jax.random.key(0), images)
    if isinstance(model, vit.VisionTransformer):
        return (Stage("", last.shape[-1]),) * len(blocks(model.size.depth))
    by_side.pop(last.shape[1], None)
    before = list(by_side.values())[1 - _MOST :]
    return (*before, Stage("", last.shape[-1]))


def _observed(note: Callable[[str, Array], None]) -> Any:
    """Returns a context in which `note` is called with the maps that a trunk's modules return."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        path = context.module.path
        if len(path) == 1 and context.method_name == "__call__" and getattr(out, "ndim", 0) == 4:
            note(path[0], out)
        return out

    return nn.intercept_methods(intercept)


def logits_and_maps(
    model: Any, images: Array, *, train: bool, stages: Sequence[Stage]
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Returns the logits of a CNN, the maps that its head takes, and those of its stages.

    It is a `method` of `model.apply`.
    """
    maps: dict[str, Array] = {}
    with _observed(maps.__setitem__):
        maps[""] = model.trunk(images, train=train)
    return model.head(maps[""], train=train), maps[""], tuple(maps[name] for name, _ in stages)


def of_taps(
    model: vit.VisionTransformer, sown: Variables
) -> tuple[Float[Array, "batch token feature"], ...]:
    """Returns the patch tokens after the blocks that were taps, given what was sown; () if none."""
    if encoder.TAPS not in sown:
        return ()
    collection: Mapping[str, Any] = sown[encoder.TAPS]
    return tuple(tokens[:, model.prefix :] for tokens in collection["Transformer"]["tokens"])
