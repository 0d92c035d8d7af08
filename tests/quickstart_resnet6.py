"""configs/quickstart.py with a ResNet of two blocks, which compiles in a fraction of the time.

It is for tests of whole runs. Tests that compare the student with timm's use ResNet-18.
"""

import functools

from ml_collections import ConfigDict

from configs import quickstart
from remem_jax import models
from remem_jax.models import resnet

NAME = "resnet6"
STUDENT = models.Student(
    functools.partial(resnet.make, depths=(1, 1)), head=("fc/kernel", "fc/bias")
)


def get_config() -> ConfigDict:
    """Returns the settings, and adds the student to the table."""
    models.STUDENTS[NAME] = STUDENT
    config = quickstart.get_config()
    config.student.model = NAME
    return config
