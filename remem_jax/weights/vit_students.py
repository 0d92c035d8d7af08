"""Reads the checkpoint of a ViT as the initial weights of a student, and students' files.

A student is timm's network, so that timm loads what a run writes: its positions are learned, and
start from big_vision's if a checkpoint computes them; a `pre_logits` layer is dropped.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import vit, vit_student
from remem_jax.records import Variables
from remem_jax.weights import augreg, catalog, described, matching, names, timm_names


class Pretrained(NamedTuple):
    """The checkpoint of a ViT that a student starts from.

    Attributes:
        checkpoint: Contents of the file.
        architecture: The options of `models.make` that the file determines: `pool` and `gelu`.
    """

    checkpoint: augreg.Checkpoint
    architecture: Mapping[str, str]


def require_fitting(init: str, student: str) -> None:
    """Raises `SettingError` if published weights of a ViT, not read yet, are of another size."""
    published = catalog.find(init)
    size = vit.VARIANTS[published.variant]
    if size != _size(student):
        raise _other_size(init, size, student)


def read(path: str | os.PathLike[str], student: str) -> Pretrained:
    """Reads a checkpoint of vit_jax, big_vision or timm for a student.

    timm's files are read as timm computes them, with the GELU by erf, unless they are of a student
    or a teacher of ours, whose metadata have its GELU.

    Args:
        path: See `augreg.read`.
        student: One of `models.STUDENTS` that is a ViT.

    Raises:
        SettingError: If the file is broken, holds no ViT, or a ViT of another size, which the
            message names.
    """
    size = _size(student)
    if size is None:
        raise SettingError(
            f"{os.fspath(path)} holds a ViT, and config.student.model is {student}: set "
            "config.student.init to weights of that network."
        )
    checkpoint = augreg.read(path)
    is_same_width = checkpoint.size._replace(heads=size.heads) == size
    if checkpoint.form == "timm" and is_same_width:  # Its files do not record the heads.
        checkpoint = augreg.read(path, heads=size.heads)
    if checkpoint.size != size:
        raise _other_size(
            os.fspath(path), checkpoint.size, student, any_heads=checkpoint.form == "timm"
        )
    _require_plain(checkpoint, student)
    options = checkpoint.options
    return Pretrained(checkpoint, {"pool": options["pool"], "gelu": options["gelu"]})


def _require_plain(checkpoint: augreg.Checkpoint, student: str) -> None:
    """Raises `SettingError` unless a checkpoint is of a plain ViT, as students are."""
    options = checkpoint.options
    others = sorted(options.keys() - described.OF_NPZ)
    is_known = options["gelu"] in vit_student.GELUS and options["pool"] in vit_student.POOLS
    if others or not is_known:
        raise SettingError(
            f"{checkpoint.source} is a ViT with {', '.join(others) or options['gelu']}, which "
            f"{student} does not have: set config.student.init to weights of that network."
        )


def variables(
    pretrained: Pretrained, model: vit.VisionTransformer, *, image_size: int
) -> tuple[Variables, matching.Report]:
    """Returns the variables of a student from its checkpoint, without the head.

    Positions are resized to the grid of the images, as in vit_jax.

    Args:
        pretrained: From `read`.
        model: The student, made with the `architecture` of the checkpoint.
        image_size: Side of the images, in pixels.

    Returns:
        Nested variables, and a report on the arrays of the file.

    Raises:
        SettingError: If arrays are missing, unexpected or mis-shaped; the message lists them.
    """
    checkpoint = pretrained.checkpoint
    arrays = dict(checkpoint.arrays)
    if names.POSITION not in arrays:
        grid = image_size // model.size.pixels
        arrays[names.POSITION] = vit.sincos2d(grid, model.size.features)
    params, report = matching.fit(
        arrays,
        augreg.names_and_shapes(model, image_size),
        reset_head=True,
        source=checkpoint.source,
        advice="set config.student.init to a checkpoint of config.student.model.",
    )
    for name in matching.HEAD:
        del params[name]
    report = report._replace(ignored=(*report.ignored, *checkpoint.ignored))
    matching.log_loaded(checkpoint.source, checkpoint.form, report)
    return {"params": traverse_util.unflatten_dict(params, sep="/")}, report


def load(path: str | os.PathLike[str], model: vit.VisionTransformer) -> Variables:
    """Reads a student with its head and its positions, checking all names and shapes.

    Args:
        path: A file that `to_timm` made.
        model: The student, made with as many classes as the file has, and with its pooling.

    Raises:
        SettingError: If the file is missing or broken, or arrays are missing, unexpected or
            mis-shaped; each is named.
    """
    return augreg.load(path, model)


def to_timm(student: Variables) -> dict[str, np.ndarray]:
    """Converts a student's variables to timm's state dict."""
    return timm_names.to_timm(augreg.flatten(student["params"]))


def _size(student: str) -> vit.Size | None:
    model = models.make(student, classes=1)
    return model.size if isinstance(model, vit.VisionTransformer) else None


def _other_size(
    init: str, size: vit.Size, student: str, *, any_heads: bool = False
) -> SettingError:
    """Returns an error that names a size, and the student that has it.

    Args:
        init: The weights.
        size: Their size.
        student: The student that is not of this size.
        any_heads: Whether the number of heads is unknown.
    """

    def is_same(other: vit.Size | None) -> bool:
        return other is not None and size == (
            other._replace(heads=size.heads) if any_heads else other
        )

    titles = [f"ViT-{name}" for name, known in vit.VARIANTS.items() if is_same(known)]
    title = (
        f"ViT of {size.depth} blocks with {size.features} features and patches of {size.pixels} "
        "pixels"
    )
    fitting = [name for name in models.STUDENTS if is_same(_size(name))]
    other = f"set config.student.model to {fitting[0]}, or " if fitting else "set "
    return SettingError(
        f"{init} is a {[*titles, title][0]}, and config.student.model is {student}: {other}"
        "config.student.init to weights of that network."
    )
