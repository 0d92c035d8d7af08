"""Models by name, and the functions that initialise and apply them.

`TEACHERS` has the constructors, `STUDENTS` a record for each student, `applying` the functions.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from remem_jax.models import vit
from remem_jax.models.applying import evaluation_apply as evaluation_apply
from remem_jax.models.applying import projected as projected
from remem_jax.models.applying import student_apply as student_apply
from remem_jax.models.applying import teacher_apply as teacher_apply
from remem_jax.models.applying import train_apply as train_apply
from remem_jax.models.students import STUDENTS as STUDENTS
from remem_jax.models.students import Student as Student
from remem_jax.records import Key, Params, Variables

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
