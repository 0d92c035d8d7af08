"""Reads and writes the weights of students as files of timm or torchvision."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from remem_jax.checks import one_of
from remem_jax.models import vit
from remem_jax.records import Variables
from remem_jax.weights import matching, timm, torch_names, vit_students

FORMS = ("timm", "torchvision")


class File(NamedTuple):
    """The contents of a student's file.

    Attributes:
        variables: Nested variables under our names.
        is_torchvision: Whether the file has names that only torchvision uses.
        ignored: Names of arrays that are not part of the network.
    """

    variables: Variables
    is_torchvision: bool
    ignored: tuple[str, ...]


def load(path: str | os.PathLike[str], model: nn.Module) -> Variables:
    """Reads the variables of a student from a .safetensors file, checking all names and shapes.

    Args:
        path: A file with the names of timm or torchvision, which are detected.
        model: A student made by `models.make`, with as many classes as the file has.

    Raises:
        SettingError: If the file is missing or broken, or arrays are missing, unexpected or
            mis-shaped; each is named.
    """
    if isinstance(model, vit.VisionTransformer):
        return vit_students.load(path, model)
    variables = read(path).variables
    matching.require_match(
        {name: np.asarray(array) for name, array in named(variables).items()},
        shapes(model),
        os.fspath(path),
        "make the model that was saved, with its number of classes and its stem.",
    )
    return variables


def read(path: str | os.PathLike[str]) -> File:
    """Reads the variables of any student, without comparing them with a model.

    Raises:
        SettingError: If the file is missing or broken, or has numbers that are not finite.
    """
    arrays, ignored = timm.unwrapped(timm.read(path), os.fspath(path))
    matching.require_finite(arrays, os.fspath(path))
    is_torchvision = torch_names.is_torchvision(arrays)
    convert = torch_names.from_torchvision if is_torchvision else torch_names.from_timm
    return File(convert(arrays), is_torchvision, ignored)


def save(
    path: str | os.PathLike[str],
    variables: Variables,
    *,
    form: str = "timm",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a student's variables to a .safetensors file, atomically.

    Args:
        path: The file.
        variables: Variables of a student.
        form: Naming of the arrays: "timm" or "torchvision", which names ResNets as timm does.
        metadata: Texts for the header of the file.

    Raises:
        ValueError: If torchvision has no such family of networks.
    """
    one_of("form", form, FORMS)
    timm.save(pathlib.Path(path), _state_dict(jax.device_get(variables), form), metadata)


def _state_dict(variables: Variables, form: str) -> dict[str, np.ndarray]:
    if "Transformer" in variables["params"]:
        if form != "timm":
            raise ValueError("torchvision has other ViTs; save it in the form 'timm'.")
        return vit_students.to_timm(variables)
    return (torch_names.to_timm if form == "timm" else torch_names.to_torchvision)(variables)


def named(variables: Variables) -> dict[str, Any]:
    """Returns variables by their slash-joined names, such as "params/fc/kernel"."""
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    return {str(name): leaf for name, leaf in flat.items()}


@functools.cache
def shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Returns the shapes of a student's variables by `named`."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return {name: tuple(leaf.shape) for name, leaf in named(variables).items()}
