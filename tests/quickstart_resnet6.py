"""configs/quickstart.py with a student of two blocks, which compiles in a fraction of the time.

For tests of whole runs; those that compare the student with timm's have ResNet-18.
"""

import functools

from ml_collections import ConfigDict

from configs import quickstart
from remem_jax import models
from remem_jax.models import resnet

STUDENT = "resnet6"
make = functools.partial(resnet.make, depths=(1, 1))


def get_config() -> ConfigDict:
    """All settings, with the student in the table of those that there are."""
    models.STUDENTS[STUDENT] = make
    config = quickstart.get_config()
    config.student.model = STUDENT
    return config
