"""configs/quickstart.py with models that compile and train in a fraction of the time.

The teacher is a ViT of two blocks, the student a ResNet of one block. For tests of whole runs;
tests that compare the student with timm's use ResNet-18.
"""

import functools
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import quickstart
from remem_jax import models
from remem_jax.models import resnet, vit
from remem_jax.weights import augreg

NAME = "resnet4"
STUDENT = models.Student(functools.partial(resnet.make, depths=(1,)), head=("fc/kernel", "fc/bias"))
# Kernels of its MLPs, stacked, are just large enough to be divided by FSDP.
TEACHER = vit.Size(patch=8, features=64, depth=2, heads=2)
IMAGE_SIZE = 16  # Pixels.


def get_config() -> ConfigDict:
    """Returns all settings, and adds the student to the table of students."""
    models.STUDENTS[NAME] = STUDENT
    config = quickstart.get_config()
    config.student.model = NAME
    config.teacher.variant = ""
    config.data.image_size = IMAGE_SIZE
    return config


def save_teacher(path: pathlib.Path, *, form: str = "vit_jax", **options: Any) -> pathlib.Path:
    """Writes a checkpoint of the teacher with random weights, and returns its path."""
    model = models.make("vit", variant=TEACHER, classes=3, **options)
    augreg.save(path, models.init(model, jax.random.key(0), IMAGE_SIZE)["params"], form=form)
    return path
