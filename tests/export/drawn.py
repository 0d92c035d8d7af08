"""Students with random parameters and statistics, and images, shared by the export tests."""

import functools
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from remem_jax import models
from remem_jax.export import description, formats, options, predictors, runs
from remem_jax.export import images as image_files
from remem_jax.export.options import Form

SIDE = 32
CLASSES = ("cat", "dog", "fish", "café", "owl, barn")


@functools.cache
def images() -> image_files.Images:
    """Returns images of coarse squares, with labels."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)
    pixels = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return image_files.Images(pixels, rng.integers(0, len(CLASSES), 12), "squares")


def floats() -> np.ndarray:
    """Returns the same images scaled to [-1, 1]."""
    return images().pixels.astype(np.float32) / 127.5 - 1


@functools.cache
def student(name: str) -> runs.Student:
    """Returns a student whose activations keep their scale, so that every layer matters."""
    rng = np.random.default_rng(0)
    model = models.make(name, classes=len(CLASSES))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, deviation, leaf.shape).astype(np.float32)
        low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(kind, (-0.2, 0.2))
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), SIDE))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    described = description.Description(
        name, "imagenet", CLASSES, SIDE, Form("safetensors"), identity="drawn"
    )
    return runs.Student(model, variables, described, "drawn")


@functools.cache
def predictor(name: str) -> predictors.Predictor:
    """Returns a JAX predictor of the student, compiled once."""
    return predictors.of_student(student(name))


@functools.cache
def logits(name: str) -> np.ndarray:
    """Returns the student's logits for the images."""
    return predictor(name).predict(images().pixels)


def write(name: str, form: Form, folder: pathlib.Path) -> pathlib.Path:
    """Writes the student in the given form."""
    drawn_student = student(name)
    path = folder / f"student{options.SUFFIXES[form.format]}"
    formats.write(drawn_student, drawn_student.described._replace(form=form), path, images().pixels)
    return path


@functools.cache
def onnx_bytes(name: str, form: Form) -> bytes:
    """Returns the bytes of the student's ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        return write(name, form, pathlib.Path(folder)).read_bytes()
