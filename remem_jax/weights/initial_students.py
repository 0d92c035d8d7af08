"""Reads the pretrained weights that a student starts from (`config.student.init`)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from flax import traverse_util

from remem_jax import models
from remem_jax.models import normalisation
from remem_jax.models.normalisation import Normalisation
from remem_jax.records import Variables
from remem_jax.storage import results
from remem_jax.weights import (
    catalog,
    matching,
    student_matching,
    student_normalisation,
    student_sources,
    students,
    vit_students,
)
from remem_jax.weights.student_sources import Source


class InitialStudent(NamedTuple):
    """The pretrained weights of a student.

    Attributes:
        variables: Its variables, float32, without the head.
        architecture: The options of `models.make` that the weights determine: `pool` and `gelu` of
            a ViT, none for other networks.
        normalisation: Normalisation of its images.
        digest: Digest of the file and the normalisation.
        record: Description for results and reports, as JSON values.
    """

    variables: Variables
    architecture: Mapping[str, str]
    normalisation: Normalisation
    digest: str
    record: Mapping[str, Any]


class _Body(NamedTuple):
    """The weights of a student without its head, and what the file determines."""

    variables: Variables
    report: matching.Report
    architecture: Mapping[str, str]
    is_torchvision: bool = False


def read(
    init: str,
    *,
    student: str,
    stem: str,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    mirror: str = "",
) -> InitialStudent:
    """Reads the weights that `config.student.init` names, and checks that they are the student's.

    Args:
        init: The value of the setting; see `student_sources.check`.
        student: Name of the student, one of `models.STUDENTS`.
        stem: Its stem.
        image_size: Side of its images, in pixels, to which the positions of a ViT are resized.
        mean: Means that replace those of the weights; empty keeps them.
        std: Standard deviations that replace those of the weights; empty keeps them.
        mirror: See `student_sources.obtain`.

    Raises:
        SettingError: If the weights are missing or damaged, or are of another network, which is
            named, or of another stem.
    """
    source = student_sources.obtain(init, student, mirror=mirror)
    student_matching.require_described(source, init, student, stem)
    body = _body(source, init, student, stem, image_size)
    logging.info("Loaded %s: %s.", init, body.report)
    explicit = normalisation.given("config.student", mean, std)
    used, origin = (
        (explicit, "config.student.mean and std")
        if explicit
        else (
            student_normalisation.of_source(
                source, init, student, is_torchvision=body.is_torchvision
            )
        )
    )
    mean_text, std_text = (", ".join(f"{value:.4g}" for value in values) for values in used)
    logging.info(
        "The student takes images with mean %s and deviation %s, as %s says.",
        mean_text,
        std_text,
        origin,
    )
    file, _ = catalog.split_path(str(source.path))
    digest = results.digest(file)
    record = {
        "init": init,
        "repository": source.repository,
        "commit": source.commit,
        "architecture": source.architecture,
        "licence": source.licence,
        "pretraining": source.published.pretraining if source.published else "",
        "digest": digest,
        "mean": list(used.mean),
        "std": list(used.std),
        "normalisation_from": origin,
    }
    fingerprint = results.fingerprint([digest, used])
    return InitialStudent(body.variables, body.architecture, used, fingerprint, record)


def _body(source: Source, init: str, student: str, stem: str, image_size: int) -> _Body:
    """Reads the weights of a student without its head, and checks them."""
    if student_sources.is_vit(student):
        with student_sources.for_students():
            pretrained = vit_students.read(source.path, student)
            model: Any = models.make(student, classes=1, **pretrained.architecture)
            variables, report = vit_students.variables(pretrained, model, image_size=image_size)
        return _Body(variables, report, pretrained.architecture)
    with student_sources.for_students():
        file = students.read(source.path)
    arrays, report = student_matching.fit(file, init, student, stem)
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    return _Body(variables, report, {}, file.is_torchvision)


def join(variables: Variables, loaded: Variables) -> Variables:
    """Returns a student's variables, with those that are loaded in place of its own."""
    merged = {**students.named(variables), **students.named(loaded)}
    return traverse_util.unflatten_dict(merged, sep="/")
