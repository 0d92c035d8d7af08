"""The catalogue of pretrained weights for students: a short list that we recommend.

The names are timm's, ARCHITECTURE.TAG, and each file is in the Hub's repository `timm/NAME`. A
student takes the weights of its own architecture, in the order of the list: the first ones are
what "imagenet" stands for.

Sources: normalisation, sizes and licences are from timm's `pretrained_cfg`; top-1 accuracies from
`results/results-imagenet.csv` of github.com/huggingface/pytorch-image-models.
"""

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import normalisation
from remem_jax.models.normalisation import Normalisation

RECOMMENDED = "imagenet"  # The value of config.student.init for the first weights of a student.
# Google trained the Lite networks on (pixel - 127) / 128. timm gives mean and deviation 0.5, which
# is (pixel - 127.5) / 127.5 and differs by at most 1/128.
LITE = Normalisation((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))

_IMAGENET, _HALF = normalisation.IMAGENET, normalisation.IDENTITY
_UNIT = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # Pixels in [0, 1].
_APACHE, _BSD, _MIT = "apache-2.0", "bsd-3-clause", "mit"
_I1K, _I12K, _I21K = "ImageNet-1k", "ImageNet-12k, then -1k", "ImageNet-21k, then -1k"


class Published(NamedTuple):
    """Pretrained weights of a student.

    Attributes:
        name: Their name in timm, such as "resnet18.a1_in1k".
        normalisation: Normalisation of the images that they were trained with.
        train_pixels: Side of the training images, in pixels.
        top1: Top-1 accuracy on ImageNet's validation images, in percent.
        test_pixels: Side of the images of that accuracy, in pixels.
        pretraining: Data sets that they were trained on.
        licence: Licence, as the Hub abbreviates it.
    """

    name: str
    normalisation: Normalisation
    train_pixels: int
    top1: float
    test_pixels: int
    pretraining: str = _I1K
    licence: str = _APACHE

    @property
    def architecture(self) -> str:
        """Name of the network in timm."""
        return self.name.partition(".")[0]

    @property
    def repository(self) -> str:
        """Name of the repository on the Hub."""
        return f"timm/{self.name}"


_PUBLISHED = (
    Published("resnet18.a1_in1k", _IMAGENET, 224, 73.164, 288),
    Published("resnet18.tv_in1k", _IMAGENET, 224, 69.752, 224, licence=_BSD),
    Published("resnet34.ra4_e3600_r224_in1k", _HALF, 224, 78.972, 288),
    Published("resnet34.a1_in1k", _IMAGENET, 224, 77.930, 288),
    Published("resnet50.a1_in1k", _IMAGENET, 224, 81.240, 288),
    Published("resnet50.tv2_in1k", _IMAGENET, 176, 80.846, 224, licence=_BSD),
    Published("resnet26d.bt_in1k", _IMAGENET, 224, 77.422, 288),
    Published("resnet50d.ra4_e3600_r224_in1k", _HALF, 224, 81.840, 288),
    Published("resnet50d.a1_in1k", _IMAGENET, 224, 81.466, 288),
    Published("mobilenetv2_100.ra_in1k", _IMAGENET, 224, 72.910, 224),
    Published("mobilenetv2_050.lamb_in1k", _IMAGENET, 224, 65.928, 224),
    Published("mobilenetv2_140.ra_in1k", _IMAGENET, 224, 76.528, 224),
    Published("mobilenetv3_small_100.lamb_in1k", _IMAGENET, 224, 67.636, 224),
    Published("mobilenetv3_large_100.ra4_e3600_r224_in1k", _HALF, 224, 77.182, 256),
    Published("mobilenetv3_large_100.miil_in21k_ft_in1k", _UNIT, 224, 77.920, 224, _I21K),
    Published("mobilenetv4_conv_small.e3600_r256_in1k", _HALF, 256, 75.616, 320),
    Published("mobilenetv4_conv_small.e2400_r224_in1k", _IMAGENET, 224, 74.644, 256),
    Published("mobilenetv4_conv_medium.e500_r256_in1k", _IMAGENET, 256, 80.890, 320),
    Published(
        "mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k", _IMAGENET, 384, 82.776, 384, _I12K
    ),
    Published("efficientnet_b0.ra4_e3600_r224_in1k", _HALF, 224, 79.364, 256),
    Published("efficientnet_b0.ra_in1k", _IMAGENET, 224, 77.698, 224),
    Published("tf_efficientnet_lite0.in1k", LITE, 224, 74.846, 224),
    Published("tf_efficientnet_lite1.in1k", LITE, 240, 76.674, 240),
    Published("tf_efficientnet_lite2.in1k", LITE, 260, 77.470, 260),
    Published("tf_efficientnet_lite3.in1k", LITE, 300, 79.808, 300),
    Published("tf_efficientnet_lite4.in1k", LITE, 380, 81.540, 380),
    Published("tf_efficientnetv2_b0.in1k", _IMAGENET, 192, 78.386, 224),
    Published("tf_efficientnetv2_s.in21k_ft_in1k", _HALF, 300, 84.332, 384, _I21K),
    Published("tf_efficientnetv2_s.in1k", _HALF, 300, 83.900, 384),
    Published("tf_efficientnetv2_m.in21k_ft_in1k", _HALF, 384, 86.014, 480, _I21K),
    Published("tf_efficientnetv2_m.in1k", _HALF, 384, 85.208, 480),
    Published("regnety_004.tv2_in1k", _IMAGENET, 224, 75.594, 224, licence=_BSD),
    Published("regnety_004.pycls_in1k", _IMAGENET, 224, 74.004, 224, licence=_MIT),
    Published("regnety_008.pycls_in1k", _IMAGENET, 224, 76.334, 224, licence=_MIT),
    Published("vit_tiny_patch16_224.augreg_in21k_ft_in1k", _HALF, 224, 75.452, 224, _I21K),
    Published("vit_small_patch16_224.augreg_in21k_ft_in1k", _HALF, 224, 81.402, 224, _I21K),
)
PUBLISHED: Mapping[str, Published] = {weights.name: weights for weights in _PUBLISHED}


def of_student(student: str) -> list[Published]:
    """Returns the weights for a student of `models.STUDENTS`; the recommended ones are first."""
    architecture = models.STUDENTS[student].timm
    return [weights for weights in _PUBLISHED if weights.architecture == architecture]


def student_of(weights: Published) -> str | None:
    """Returns the student that weights are for; None if there is none."""
    names = (
        name for name, student in models.STUDENTS.items() if student.timm == weights.architecture
    )
    return next(names, None)


def is_name(init: str) -> bool:
    """Returns whether `init` is the name of published weights, or `RECOMMENDED`."""
    return init == RECOMMENDED or init in PUBLISHED


def find(init: str, student: str) -> Published:
    """Returns the published weights of a name, for a student.

    Args:
        init: `RECOMMENDED`, or one of `PUBLISHED`.
        student: One of `models.STUDENTS`.

    Raises:
        SettingError: If there are none, or if they are for another student.
    """
    listed = of_student(student)
    names = ", ".join(weights.name for weights in listed)
    if init == RECOMMENDED:
        if not listed:
            raise SettingError(
                f"The catalogue has no pretrained weights for {student}: set config.student.init "
                "to a file or to a name on the Hub, leave it empty for random weights, or set "
                f"config.student.model to one of {', '.join(_students_with_weights())}."
            )
        return listed[0]
    weights = PUBLISHED[init]
    if weights not in listed:
        raise SettingError(
            f"config.student.init is {init}, which are weights of {weights.architecture}, and "
            f"config.student.model is {student}: set config.student.model to "
            f"{student_of(weights)!r}, or config.student.init to weights of {student}"
            f"{f' ({names})' if names else ''}."
        )
    return weights


def similar(init: str) -> list[str]:
    """Returns the names that resemble a misspelt one."""
    return difflib.get_close_matches(init, PUBLISHED)


def _students_with_weights() -> list[str]:
    return [name for name in models.STUDENTS if of_student(name)]
