"""The one table of architectures, and what the rest of the house needs of a model."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from remem_jax.models import efficientnet_v2, mobilenet_v2, resnet, vit
from remem_jax.records import Apply, Key, Params, TrainApply, Variables

TEACHERS: dict[str, Callable[..., nn.Module]] = {"vit": vit.make}
STUDENTS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": functools.partial(resnet.make, depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet.make, depths=(3, 4, 6, 3)),
    "resnet50": functools.partial(resnet.make, depths=(3, 4, 6, 3), bottleneck=True),
    "mobilenet_v2": mobilenet_v2.make,
    "mobilenet_v2_035": functools.partial(mobilenet_v2.make, width=0.35),
    "mobilenet_v2_050": functools.partial(mobilenet_v2.make, width=0.5),
    "mobilenet_v2_075": functools.partial(mobilenet_v2.make, width=0.75),
    "mobilenet_v2_140": functools.partial(mobilenet_v2.make, width=1.4),
    "efficientnet_v2_b0": functools.partial(efficientnet_v2.make, variant="b0"),
    "efficientnet_v2_s": functools.partial(efficientnet_v2.make, variant="s"),
    "efficientnet_v2_m": functools.partial(efficientnet_v2.make, variant="m"),
}


def make(name: str, **options: Any) -> nn.Module:
    """Makes a model by name, such as `make("vit", variant="Ti/16", classes=1000)`.

    Args:
        name: One of `TEACHERS` or `STUDENTS`.
        **options: What the model takes: always `classes`; see its class for the others.

    Returns:
        A module; `model.apply(variables, images)` takes float32 images in [-1, 1], channels last.

    Raises:
        ValueError: If the name, or an option's value, is unknown.
    """
    known = {**TEACHERS, **STUDENTS}
    if name not in known:
        raise ValueError(f"Unknown model {name!r}; known: {', '.join(known)}.")
    return known[name](**options)


def init(model: nn.Module, key: Key, image_size: int) -> Variables:
    """First variables of a model for square images of `image_size` pixels."""
    return make_init(model, image_size)(key)


def make_init(model: nn.Module, image_size: int) -> Callable[[Key], Variables]:
    """The same for any number of keys, compiled once."""
    images = jnp.zeros((1, image_size, image_size, 3))
    return jax.jit(lambda key: model.init(key, images))


def shapes(model: nn.Module, image_size: int) -> Params:
    """Names and shapes of a model's parameters, without computing anything."""
    images = jnp.zeros((1, image_size, image_size, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def train_apply(model: nn.Module) -> TrainApply:
    """The model in training mode, as a plain function."""

    def apply(params: Params, statistics: Params, images: jax.Array, dropout_key: Key) -> Any:
        return model.apply(
            {"params": params, **statistics},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=list(statistics),
        )

    return apply


def evaluation_apply(model: nn.Module) -> Apply:
    """The model in evaluation mode, as a plain function."""

    def apply(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    return apply
