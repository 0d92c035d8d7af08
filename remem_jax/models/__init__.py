"""Models by name, and the functions that initialise and apply them.

`TEACHERS` has the constructors, `STUDENTS` a record for each student.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from remem_jax.models import projection, vit
from remem_jax.models.students import STUDENTS as STUDENTS
from remem_jax.models.students import Student as Student
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


def make(name: str, **options: Any) -> nn.Module:
    """Makes a model by name, such as `make("vit", variant="Ti/16", classes=1000)`.

    Args:
        name: One of `TEACHERS` or `STUDENTS`.
        **options: Arguments of the constructor; `classes` is required.

    Returns:
        A module; `model.apply(variables, images)` takes float32 images in [-1, 1], channels last.

    Raises:
        ValueError: If the name, or an option's value, is unknown.
    """
    if name in TEACHERS:
        return TEACHERS[name](**options)
    if name not in STUDENTS:
        known = ", ".join([*TEACHERS, *STUDENTS])
        raise ValueError(f"Unknown model {name!r}; known: {known}.")
    return STUDENTS[name].make(**options)


def init(model: nn.Module, key: Key, image_size: int) -> Variables:
    """Initialises the variables of a model for square images of `image_size` pixels."""
    return make_init(model, image_size)(key)


def make_init(model: nn.Module, image_size: int) -> Callable[[Key], Variables]:
    """Returns a function that initialises the variables with a key, compiled once for all keys."""
    images = jnp.zeros((1, image_size, image_size, 3))
    return jax.jit(lambda key: model.init(key, images))


def shapes(model: nn.Module, image_size: int) -> Params:
    """Returns the parameters of a model as shapes, without computing anything."""
    return _shapes(model, image_size)


@functools.cache
def _shapes(model: nn.Module, image_size: int) -> Params:
    images = jnp.zeros((1, image_size, image_size, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@functools.cache
def trunk_channels(model: nn.Module, image_size: int) -> int:
    """Returns the number of channels of the head's input: the last maps, or the tokens."""
    images = jnp.zeros((1, image_size, image_size, 3))
    init = functools.partial(model.init_with_output, method="trunk")
    last, _ = jax.eval_shape(init, jax.random.key(0), images)
    return last.shape[-1]


def train_apply(model: nn.Module) -> TrainApply:
    """Returns the model in training mode, as a plain function."""
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
    """Returns the model in evaluation mode, as a plain function."""

    def apply(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    return apply


def student_apply(model: nn.Module, target: projection.Target | None = None) -> StudentApply:
    """Returns a student in training mode, with its prediction of the teacher's features.

    Args:
        model: The student.
        target: The features to predict. The parameters then have a `projection`. None if the loss
            compares no features.
    """
    plain, with_last = train_apply(model), _train_apply(model, _logits_and_head_input)
    prefix, has_cls = (
        (model.prefix, model.has_cls) if isinstance(model, vit.VisionTransformer) else (0, False)
    )

    def apply(
        params: Params, statistics: Params, images: jax.Array, dropout_key: Key
    ) -> tuple[Outputs, Params]:
        if target is None:
            logits, statistics = plain(params, statistics, images, dropout_key)
            return Outputs(logits), statistics
        student_params = projection.without({"params": params})["params"]
        (logits, last), statistics = with_last(student_params, statistics, images, dropout_key)
        layer = params[projection.NAME]
        if target.field == "cls" and has_cls:
            return Outputs(logits, cls=projection.of_cls(layer, last[:, 0])), statistics
        maps = projection.grid(last[:, prefix:]) if last.ndim == 3 else last
        if target.field == "cls":
            return Outputs(logits, cls=projection.cls(layer, maps)), statistics
        return Outputs(logits, projection.patches(layer, maps, target.side)), statistics

    return apply


def teacher_apply(model: vit.VisionTransformer, fields: Collection[str] = ()) -> TeacherApply:
    """Returns a teacher in evaluation mode, with the features that a loss compares.

    Args:
        model: The teacher.
        fields: The feature fields of `Outputs` to return. "cls" needs a model with [CLS].

    Raises:
        ValueError: If `fields` has "cls" and the model has no [CLS] token.
    """
    plain = evaluation_apply(model)
    if "cls" in fields and not model.has_cls:
        raise ValueError(f"This ViT, which pools by {model.pool!r}, has no [CLS] token.")

    def apply(variables: Variables, images: jax.Array) -> Outputs:
        if not fields:
            return Outputs(plain(variables, images))
        outputs: Any = model.apply(variables, images, train=False, method=_logits_and_head_input)
        logits, tokens = outputs
        features = {"patches": tokens[:, model.prefix :], "cls": tokens[:, 0]}
        return Outputs(logits, **{field: features[field] for field in fields})

    return apply


def _logits_and_head_input(
    model: Any, images: jax.Array, *, train: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits, and the maps or tokens that the head takes."""
    last = model.trunk(images, train=train)
    return model.head(last, train=train), last
