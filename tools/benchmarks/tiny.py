"""Networks of trials at tiny sizes, which compile in a fraction of the time."""

import functools
import pathlib

import jax

from remem_jax import models
from remem_jax.models import resnet, vit
from remem_jax.weights import augreg
from tools.benchmarks.rows import TINY_STUDENT

_TEACHER = vit.Size(patch=8, features=64, depth=6, heads=2)
_PIXELS, _CLASSES = 32, 10


def add_student() -> str:
    """Adds a ResNet of two blocks to the table of students, and returns its name."""
    make = functools.partial(resnet.make, depths=(1, 1))
    models.STUDENTS[TINY_STUDENT] = models.Student(make, head=("fc/kernel", "fc/bias"))
    return TINY_STUDENT


def save_teacher(path: pathlib.Path) -> None:
    """Writes a checkpoint of a small ViT with random weights, in the format of vit_jax."""
    model = models.make("vit", variant=_TEACHER, classes=_CLASSES)
    augreg.save(path, jax.device_get(models.init(model, jax.random.key(0), _PIXELS)["params"]))
