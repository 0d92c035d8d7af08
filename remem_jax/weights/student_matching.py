"""Fits the variables of a file to a student, and recognises the networks of other files."""

from collections.abc import Mapping

import numpy as np

from remem_jax import models
from remem_jax.checks import SettingError, require
from remem_jax.models import layers
from remem_jax.weights import matching, student_catalog, students
from remem_jax.weights.student_sources import Source

_Shapes = Mapping[str, tuple[int, ...]]


def require_described(source: Source, init: str, student: str, stem: str) -> None:
    """Raises `SettingError` if what is known about a file says that it is of another network.

    Some networks have equal names and shapes and compute other functions: those with another
    padding, or another stride in the stem. This does not hold for ViTs: timm has many names for one
    network, such as vit_tiny_patch16_384 and deit_tiny_patch16_224.

    Args:
        source: The file.
        init: The value of `config.student.init`.
        student: One of `models.STUDENTS`.
        stem: Its stem.
    """
    timm, stored = models.STUDENTS[student].timm, source.metadata.get("model", student)
    require(
        stored == student,
        f"{init} holds a {stored}, and config.student.model is {student}: "
        f"{_advice(stored, student)}.",
    )
    is_known = bool(source.architecture) and "model" not in source.metadata
    require(
        not is_known or source.architecture == timm or models.STUDENTS[student].patch > 1,
        f"{init} holds timm's {source.architecture}, and config.student.model is {student}"
        f"{f' ({timm} in timm)' if timm else ''}: "
        f"{_advice(_of_timm(source.architecture), student)}.",
    )
    is_published = bool(source.architecture)
    published_stem = source.metadata.get("stem", layers.STEMS[0] if is_published else stem)
    require(
        published_stem == stem,
        f"{init} was trained with the stem {published_stem!r}, and config.student.stem is "
        f"{stem!r}: set it to {published_stem!r}, and enlarge small images by "
        "config.data.image_size.",
    )


def fit(
    file: students.File, init: str, student: str, stem: str
) -> tuple[dict[str, np.ndarray], matching.Report]:
    """Returns a file's arrays without the head, by the names of `students.named`, and a report.

    Args:
        file: The file.
        init: The value of `config.student.init`.
        student: One of `models.STUDENTS`.
        stem: Its stem.

    Raises:
        SettingError: If the file is of another network, which is named if it is known, or arrays
            are missing, unexpected or mis-shaped, or hold no real numbers.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in students.named(file.variables).items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    head = _head(student)
    body = {name: array for name, array in arrays.items() if name not in head}
    expected = _shapes_of(student, stem)
    if not _is(shapes, student, stem):
        _require_not_recognised(shapes, init, student, stem)
    matching.require_match(
        body, expected, init, f"set config.student.init to weights of {student}."
    )
    integers = [name for name, array in body.items() if not np.issubdtype(array.dtype, np.floating)]
    require(
        not integers,
        f"{init} holds integers, perhaps quantised weights, in {matching.listed(integers)}: set "
        "config.student.init to the weights before quantisation.",
    )
    dropped = tuple(sorted(head & arrays.keys()))
    return body, matching.Report(tuple(body), (), dropped, file.ignored)


def _require_not_recognised(shapes: _Shapes, init: str, student: str, stem: str) -> None:
    """Raises an error that names the student of a file, if its shapes are those of one."""
    require(
        not {"params/pos_embed", "params/patch_embed/proj/kernel"} & set(shapes),
        f"{init} holds a ViT, and config.student.model is {student}: {_advice('', student)}.",
    )
    for other in layers.STEMS:
        require(
            other == stem or not _is(shapes, student, other),
            f"{init} holds a {student} with the stem {other!r}, and config.student.stem is "
            f"{stem!r}: set config.student.stem to {other!r}, or config.student.init to other "
            "weights.",
        )
    heads = {name: not shapes.keys().isdisjoint(_head(name)) for name in models.STUDENTS}
    # Tracing all students takes long, so that those with other heads are left out.
    candidates = [name for name, has in heads.items() if has or not any(heads.values())]
    for name in candidates:
        if name != student and _is_any(shapes, name):
            raise SettingError(
                f"{init} holds a {name}, and config.student.model is {student}: "
                f"{_advice(name, student)}."
            )


def _is(shapes: _Shapes, student: str, stem: str) -> bool:
    """Returns whether all shapes but those of the head are those of a student."""
    body = {name: shape for name, shape in shapes.items() if name not in _head(student)}
    return body == _shapes_of(student, stem)


def _is_any(shapes: _Shapes, student: str) -> bool:
    """Returns whether `_is` holds for any stem; the second is traced only if the names fit."""
    body = shapes.keys() - _head(student)
    first, *others = layers.STEMS
    if _is(shapes, student, first):
        return True
    return body == _shapes_of(student, first).keys() and any(
        _is(shapes, student, stem) for stem in others
    )


def _head(student: str) -> set[str]:
    return {f"params/{name}" for name in models.STUDENTS[student].head}


def _shapes_of(student: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a student's variables without its head; {} for an unknown stem."""
    try:
        model = models.make(student, classes=1, stem=stem)
    except ValueError:
        return {}
    shapes = students.shapes(model)
    return {name: shape for name, shape in shapes.items() if name not in _head(student)}


def _of_timm(architecture: str) -> str:
    names = (name for name, student in models.STUDENTS.items() if student.timm == architecture)
    return next(names, "")


def _advice(held: str, student: str) -> str:
    """Returns what to change if weights are of another student; `held` may be unknown."""
    listed = ", ".join(weights.name for weights in student_catalog.of_student(student))
    init = f"set config.student.init to weights of {student}{f' ({listed})' if listed else ''}"
    return f"set config.student.model to {held}, or {init}" if held in models.STUDENTS else init
