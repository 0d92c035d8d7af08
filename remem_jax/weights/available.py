"""The teachers and students that have names: their costs, and where their weights are."""

import os
from typing import NamedTuple

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.weights import (
    catalog,
    costs,
    download,
    hub,
    student_catalog,
    teacher_catalog,
)
from remem_jax.weights.costs import Cost

BUNDLED, HERE, AWAY, NONE = "bundled", "here", "to download", "none published"
_LICENCE_OF_VITS = "apache-2.0"  # Of github.com/google-research/vision_transformer.
_BYTES = 4  # Of a parameter in a published file on the Hub.


class Model(NamedTuple):
    """A network with pretrained weights, or a student without any.

    Attributes:
        role: "teacher" or "student".
        network: A student's name, or a ViT's variant.
        weights: Value of `config.student.init` or `config.teacher.init`; "" without weights.
        cost: Parameters and operations at `pixels`.
        pixels: Side of the images that the weights were last trained with.
        top1: Accuracy on ImageNet's validation images, in percent; None if it is not listed.
        top1_pixels: Side of the images of that accuracy; None without it.
        pretraining: Data sets of the weights; may be "".
        licence: Licence of the weights; "" without weights.
        note: A remark; may be "".
        place: `BUNDLED`, `HERE` (in the cache), `AWAY` or `NONE`.
        mebibytes: Size of the file in MiB, about that of the parameters for students and
            recommended teachers; None if it is unknown, or without weights.
        commercial: Whether commercial use of a recommended teacher is allowed: "yes", "conditions",
            "no" or "unclear"; "" for all other models.
    """

    role: str
    network: str
    weights: str
    cost: Cost
    pixels: int
    top1: float | None
    top1_pixels: int | None
    pretraining: str
    licence: str
    note: str
    place: str
    mebibytes: float | None
    commercial: str = ""


def students() -> list[Model]:
    """Lists each student with each of its published weights, the recommended ones first."""
    return [model for name in models.STUDENTS for model in _of_student(name) or [_untrained(name)]]


def teachers() -> list[Model]:
    """Lists the recommended teachers, and the bundled and the published weights of the paper's."""
    recommended = map(_recommended, teacher_catalog.PUBLISHED.values())
    return [*recommended, *map(_bundled, catalog.BUNDLED), *map(teacher, catalog.PUBLISHED)]


def teacher(name: str) -> Model:
    """Returns the published teacher of a name for `catalog.find`.

    Raises:
        SettingError: If the name is unknown.
    """
    published = catalog.find(name)
    pixels = costs.pixels_of(published)
    is_here = download.is_here(catalog.in_mirror(published.path), published.mebibytes)
    return Model(
        "teacher",
        published.variant,
        published.name,
        costs.COSTS[published.variant][pixels],
        pixels,
        None,
        None,
        published.pretraining,
        _LICENCE_OF_VITS,
        published.note,
        HERE if is_here else AWAY,
        published.mebibytes,
    )


def _recommended(published: teacher_catalog.Published) -> Model:
    is_here = hub.is_cached(hub.Name(published.repository))
    cost = costs.COSTS[published.architecture][published.pixels]
    return Model(
        "teacher",
        published.architecture,
        published.repository,
        cost,
        published.pixels,
        None,
        None,
        published.pretraining,
        published.licence,
        published.note,
        HERE if is_here else AWAY,
        _BYTES * cost.parameters / 2**20,
        published.verdict,
    )


def _bundled(name: str) -> Model:
    variant = name.partition(":")[2]
    pixels, cost = next(iter(costs.COSTS[variant].items()))
    return Model(
        "teacher",
        variant,
        name,
        cost,
        pixels,
        None,
        None,
        _pretraining(name),
        _LICENCE_OF_VITS,
        "included in the package",
        BUNDLED,
        os.path.getsize(catalog.locate(name)) / 2**20,  # noqa: PTH202
    )


def _pretraining(name: str) -> str:
    try:
        return catalog.find(name).pretraining
    except SettingError:  # The bundled one was not made from a published one.
        return ""


def _of_student(name: str) -> list[Model]:
    found = []
    for weights in student_catalog.of_student(name):
        cost = costs.COSTS[name][weights.train_pixels]
        is_here = hub.is_cached(hub.Name(weights.repository))
        found.append(
            Model(
                "student",
                name,
                weights.name,
                cost,
                weights.train_pixels,
                weights.top1,
                weights.test_pixels,
                weights.pretraining,
                weights.licence,
                "",
                HERE if is_here else AWAY,
                _BYTES * cost.parameters / 2**20,
            )
        )
    return found


def _untrained(name: str) -> Model:
    pixels, cost = next(iter(costs.COSTS[name].items()))
    return Model("student", name, "", cost, pixels, None, None, "", "", "", NONE, None)
