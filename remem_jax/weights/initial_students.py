"""Reads the pretrained weights that a student starts from (`config.student.init`)."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging
from flax import traverse_util

from remem_jax import models
from remem_jax.checks import local_path, require
from remem_jax.models.normalisation import IMAGENET, Normalisation
from remem_jax.records import Variables
from remem_jax.storage import results
from remem_jax.weights import students


class InitialStudent(NamedTuple):
    """The pretrained weights of a student.

    Attributes:
        variables: Its variables, without the head.
        normalisation: Normalisation of its images.
        digest: Digest of the file.
        record: Description for results and reports, as JSON values.
    """

    variables: Variables
    normalisation: Normalisation
    digest: str
    record: Mapping[str, Any]


def locate(init: str) -> pathlib.Path:
    """Returns the path of the file that `config.student.init` names.

    Raises:
        SettingError: If there is no such file.
    """
    path = local_path("config.student.init", init)
    require(
        path.is_file(),
        f"There are no weights {init}: set config.student.init to a .safetensors file.",
    )
    return path


def read_digest(init: str) -> str:
    """Returns the digest of the file that `config.student.init` names."""
    return results.digest(locate(init))


def read(init: str, *, student: str, stem: str) -> InitialStudent:
    """Reads the weights that `config.student.init` names.

    Args:
        init: The value of the setting.
        student: Name of the student, one of `models.STUDENTS`.
        stem: Its stem.

    Raises:
        SettingError: If the file is missing or damaged, or is of another network.
    """
    path = locate(init)
    head = models.STUDENTS[student].head
    classes = _classes(students.read(path), head)
    variables = students.load(path, models.make(student, classes=classes, stem=stem))
    body, dropped = _without(variables, head)
    logging.info("%s: the head is replaced (%s).", init, ", ".join(dropped))
    record = {"init": init, "digest": results.digest(path), "classes": classes}
    return InitialStudent(body, IMAGENET, record["digest"], record)


def join(variables: Variables, loaded: Variables) -> Variables:
    """Returns a student's variables, with those that are loaded in place of its own."""
    merged = {**_flat(variables), **_flat(loaded)}
    return traverse_util.unflatten_dict(merged)


def _classes(variables: Variables, head: tuple[str, ...]) -> int:
    """Returns the number of classes of a head; 1 if there is none, which `load` then reports."""
    flat = _flat(variables)
    sizes = [
        flat[path].shape[-1] for name in head if (path := ("params", *name.split("/"))) in flat
    ]
    return sizes[-1] if sizes else 1


def _without(variables: Variables, head: tuple[str, ...]) -> tuple[Variables, list[str]]:
    flat = _flat(variables)
    dropped = [name for name in head if ("params", *name.split("/")) in flat]
    for name in dropped:
        del flat["params", *name.split("/")]
    return traverse_util.unflatten_dict(flat), dropped


def _flat(tree: Variables) -> dict[tuple[str, ...], Any]:
    flat: Any = traverse_util.flatten_dict(dict(tree))
    return flat
