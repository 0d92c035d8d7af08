"""Runs on scikit-learn's digits, with models that compile and train in a moment.

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
from remem_jax.models import resnet, vit, vit_student
from remem_jax.records import Params
from remem_jax.weights import augreg

NAME = "resnet4"
STUDENT = models.Student(functools.partial(resnet.make, depths=(1,)), head=("fc/kernel", "fc/bias"))
# Kernels of its MLPs, stacked, are just large enough to be divided by FSDP.
TEACHER = vit.Size(patch=8, features=64, depth=2, heads=2)
IMAGE_SIZE = 16  # Pixels.
VIT_NAME = "vit_pair"
VIT_STUDENT = models.Student(
    functools.partial(vit_student.make, TEACHER),
    head=("head/kernel", "head/bias"),
    timm="vit_tiny_patch16_224",
    stems=vit_student.STEMS,
    patch=TEACHER.patch,
    architecture=vit_student.ARCHITECTURE,
    timm_options=lambda architecture, image_size: {
        "embed_dim": TEACHER.features,
        "depth": TEACHER.depth,
        "num_heads": TEACHER.heads,
        "patch_size": TEACHER.patch,
        **vit_student.timm_options(architecture, image_size),
    },
)


def add_student() -> None:
    """Adds the student to the table of students."""
    models.STUDENTS[NAME] = STUDENT


def digits() -> ConfigDict:
    """Returns the settings of a short run on the digits, with the bundled teacher and ResNet-18."""
    config = quickstart.get_config()
    config.data.name = "digits"
    config.data.image_size = 32
    config.data.stored_size = 64
    config.teacher.steps = (40, 120)
    config.teacher.optimizer = "sgd"
    config.teacher.learning_rate = 0.05
    config.teacher.warmup_steps = 20
    config.teacher.batch_size = 64
    config.teacher.weight_decay = 0.0
    config.teacher.layer_decay = 1.0
    config.teacher.mlp_weight = 0.8
    config.student.model = "resnet18"
    config.student.stem = "imagenet"
    config.student.steps = 80
    config.student.batch_size = 64
    config.student.optimizer = "sgd"
    config.student.learning_rates = (0.05, 0.1)
    config.student.temperatures = (4.0,)
    config.student.weights = (0.5,)
    config.student.warmup_steps = 10
    config.student.weight_decay = 1e-4
    return config


def get_config() -> ConfigDict:
    """Returns all settings, and adds the student to the table of students."""
    add_student()
    config = digits()
    config.student.model = NAME
    config.teacher.variant = ""
    config.data.image_size = IMAGE_SIZE
    return config


def save_teacher(path: pathlib.Path, *, form: str = "vit_jax", **options: Any) -> pathlib.Path:
    """Writes a checkpoint of the teacher with random weights, and returns its path."""
    augreg.save(path, _teacher(**options), form=form)
    return path


@functools.cache
def _teacher(**options: Any) -> Params:
    """Initialises the parameters of a teacher, which takes half a second."""
    model = models.make("vit", variant=TEACHER, classes=3, **options)
    return jax.device_get(models.init(model, jax.random.key(0), IMAGE_SIZE)["params"])
