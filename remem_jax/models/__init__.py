"""The one table of architectures, and what the rest of the house needs of a model."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from remem_jax.models import efficientnet_v2, mobilenet_v2, projection, resnet, vit
from remem_jax.records import (
    Apply,
    Key,
    Outputs,
    Params,
    StudentApply,
    TeacherApply,
    TrainApply,
    Variables,
)

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


@functools.cache
def channels(model: nn.Module, image_size: int) -> int:
    """Channels of what a model's head sees: its last maps, or tokens."""
    images = jnp.zeros((1, image_size, image_size, 3))
    init = functools.partial(model.init_with_output, method="trunk")
    last, _ = jax.eval_shape(init, jax.random.key(0), images)
    return last.shape[-1]


def train_apply(model: nn.Module) -> TrainApply:
    """The model in training mode, as a plain function."""
    return _train_apply(model, None)


def _train_apply(model: nn.Module, method: Callable[..., Any] | None) -> Callable[..., Any]:
    def apply(params: Params, statistics: Params, images: jax.Array, dropout_key: Key) -> Any:
        return model.apply(
            {"params": params, **statistics},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=list(statistics),
            method=method,
        )

    return apply


def evaluation_apply(model: nn.Module) -> Apply:
    """The model in evaluation mode, as a plain function."""

    def apply(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    return apply


def student_apply(model: nn.Module, target: projection.Target | None = None) -> StudentApply:
    """A student in training mode, with what it learns from its teacher.

    Args:
        model: The student.
        target: What it predicts of its teacher's features; its parameters then have a
            `projection`. None where that is nothing.
    """
    plain, seen = train_apply(model), _train_apply(model, _logits_and_last)

    def apply(
        params: Params, statistics: Params, images: jax.Array, dropout_key: Key
    ) -> tuple[Outputs, Params]:
        if target is None:
            logits, statistics = plain(params, statistics, images, dropout_key)
            return Outputs(logits), statistics
        own = projection.without({"params": params})["params"]
        (logits, maps), statistics = seen(own, statistics, images, dropout_key)
        layer = params[projection.NAME]
        if target.field == "cls":
            return Outputs(logits, cls=projection.cls(layer, maps)), statistics
        return Outputs(logits, projection.patches(layer, maps, target.side)), statistics

    return apply


def teacher_apply(model: vit.VisionTransformer, fields: Collection[str] = ()) -> TeacherApply:
    """A teacher in evaluation mode, with what its students learn.

    Args:
        model: The teacher.
        fields: The feature fields of `Outputs` to return. "cls" needs a model that pools by [CLS].
    """
    plain, has_cls = evaluation_apply(model), model.pool == "cls"
    if "cls" in fields and not has_cls:
        raise ValueError(f"A ViT that pools by {model.pool!r} has no [CLS] token.")

    def apply(variables: Variables, images: jax.Array) -> Outputs:
        if not fields:
            return Outputs(plain(variables, images))
        said: Any = model.apply(variables, images, train=False, method=_logits_and_last)
        logits, tokens = said
        found = {"patches": tokens[:, 1:] if has_cls else tokens, "cls": tokens[:, 0]}
        return Outputs(logits, **{field: found[field] for field in fields})

    return apply


def _logits_and_last(model: Any, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    """What a model says, and the maps or tokens that its head says it of."""
    last = model.trunk(images, train=train)
    return model.head(last, train=train), last
