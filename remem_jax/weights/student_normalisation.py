"""Determines the mean and deviation with which a pretrained student's images are normalised."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging

from remem_jax.checks import SettingError
from remem_jax.models import normalisation
from remem_jax.models.normalisation import Normalisation
from remem_jax.weights import hub_description, student_catalog
from remem_jax.weights.student_sources import Source

_EXAMPLE = (
    "config.student.mean='(0.485, 0.456, 0.406)' --config.student.std='(0.229, 0.224, 0.225)'"
)


class Choice(NamedTuple):
    """A normalisation, and where it is from, as a phrase for logs and reports."""

    normalisation: Normalisation
    origin: str


def of_source(source: Source, init: str, student: str, *, is_torchvision: bool) -> Choice:
    """Returns the normalisation that pretrained weights expect.

    It is that of the file's metadata (a student of ours), of the catalogue, or of config.json on
    the Hub. A bare file does not record it: if it has torchvision's names, it is ImageNet's;
    otherwise that of all weights of this network in the catalogue, if they agree.

    Args:
        source: The weights.
        init: The value of `config.student.init`.
        student: One of `models.STUDENTS`.
        is_torchvision: Whether the file has torchvision's names.

    Raises:
        SettingError: If it cannot be determined.
    """
    stored = read(source.metadata, init)
    if stored:
        return Choice(stored, "the file's metadata")
    if source.is_npz:
        return Choice(normalisation.IDENTITY, "vit_jax and big_vision, for all of their weights")
    if source.published:
        return Choice(source.published.normalisation, f"the catalogue ({source.published.name})")
    described = hub_description.statistics(source.config, {})
    if described:
        return Choice(_checked(described, f"config.json of {init}"), "config.json")
    if is_torchvision:
        return Choice(normalisation.IMAGENET, "torchvision, for all of its weights")
    usual = {weights.normalisation for weights in student_catalog.of_student(student)}
    if len(usual) == 1:
        logging.warning(
            "%s does not record the mean and the deviation that its images were normalised with; "
            "those of all published weights of %s are used. If they were others, set "
            "config.student.mean and config.student.std.",
            init,
            student,
        )
        return Choice(usual.pop(), f"all weights of {student} in the catalogue")
    raise SettingError(
        f"{init} does not record the mean and the deviation that its images were normalised with, "
        f"and weights of {student} differ in them: set both, for example --{_EXAMPLE}."
    )


def options(used: Normalisation) -> dict[str, Any]:
    """Returns the argument of `models.make`; none for images in [-1, 1]."""
    return {} if used == normalisation.IDENTITY else {"normalisation": used}


def texts(used: Normalisation) -> dict[str, str]:
    """Returns a normalisation as metadata of a file."""
    return {"mean": json.dumps(used.mean), "std": json.dumps(used.std)}


def read(metadata: Mapping[str, str], source: str) -> Normalisation | None:
    """Returns the normalisation in the metadata of a student's file; None if it is another file.

    Files of earlier versions do not have it: their students take images in [-1, 1].

    Raises:
        SettingError: If it is damaged.
    """
    if "mean" not in metadata and "std" not in metadata:
        return normalisation.IDENTITY if "image_range" in metadata else None
    try:
        values = {name: json.loads(metadata[name]) for name in ("mean", "std")}
    except (KeyError, ValueError):
        values = {}
    return _checked(values, source)


def _checked(values: Mapping[str, Any], source: str) -> Normalisation:
    parsed = normalisation.parse(values.get("mean"), values.get("std"))
    if parsed is None:
        raise SettingError(
            f"The mean and std of {source} are not three numbers each, with std above 0: set "
            "config.student.mean and config.student.std."
        )
    return parsed
