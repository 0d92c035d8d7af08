"""The student networks: one record each, with everything that depends on the network.

To add a student, add a record to `STUDENTS`; docs/extending/student.md has an example. The
settings, the files of weights, the exports, the reports, the model card and the tests read it.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from remem_jax.models import (
    architectures,
    inverted_residual,
    layers,
    mobilenets,
    regnet,
    resnet,
    torchvision_names,
    vit,
    vit_student,
)

# Other values give other results: `storage.identity.TRAINING` then increases.
_CONVOLUTIONAL_RATES = {"sgd": (0.01, 0.03, 0.1), "adamw": (3e-4, 1e-3, 3e-3)}


def _no_options(architecture: Mapping[str, str], image_size: int) -> dict[str, Any]:
    """Returns no arguments: timm's name determines a convolutional network."""
    del architecture, image_size
    return {}


class Student(NamedTuple):
    """A student network.

    Attributes:
        make: Constructor of the module; takes `classes`, `stem`, `dtype`, `normalisation`,
            `dropout` and `drop_path` by name. That of a ViT also takes `pool` and `gelu`, which
            pretrained weights determine.
        head: Slash-joined names of the parameters whose shapes depend on the number of classes.
        timm: Name of the same network in timm; "" if timm has none.
        stems: Stems of the network; see `layers.STEMS`.
        patch: Side of the patches of a ViT, in pixels, of which the image size is a multiple; 1 for
            networks that take any size.
        architecture: The default of the options of `make` that pretrained weights determine.
        timm_options: Returns the arguments of `timm.create_model` that give the same network, given
            the `architecture` of its initial weights and the image size.
        small_stem: Python statements that give timm's network, `model`, the stem "small".
        torchvision: Name of the same network in `torchvision.models`; "" if it has none.
        torchvision_names: torchvision's names of modules by timm's, as far as they differ; a width
            or a size that torchvision does not publish has them too.
        pretrained_rates: Usual learning rates for fine-tuning the network, by optimiser.
        paper: What the paper calls this student, as in `report.paper`; "" if the paper has none.
    """

    make: Callable[..., nn.Module]
    head: tuple[str, ...]
    timm: str = ""
    stems: tuple[str, ...] = layers.STEMS
    patch: int = 1
    architecture: Mapping[str, str] = {}
    timm_options: Callable[[Mapping[str, str], int], dict[str, Any]] = _no_options
    small_stem: tuple[str, ...] = ()
    torchvision: str = ""
    torchvision_names: Mapping[str, str] = {}
    pretrained_rates: Mapping[str, tuple[float, ...]] = _CONVOLUTIONAL_RATES
    paper: str = ""

    def takes(self, option: str) -> bool:
        """Returns whether the constructor takes an option, such as "drop_path"."""
        parameters = inspect.signature(self.make).parameters
        return option in parameters or any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        )


def _resnet(name: str, *depths: int, bottleneck: bool = False, paper: str = "") -> Student:
    """Returns the record of a ResNet; timm and torchvision use the same names for its modules."""
    return Student(
        functools.partial(resnet.make, depths=depths, bottleneck=bottleneck),
        head=("fc/kernel", "fc/bias"),
        timm=name,
        small_stem=(
            "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
        ),
        torchvision=name,
        paper=paper,
    )


def _resnet_d(name: str, *depths: int) -> Student:
    """Returns the record of a ResNet-D with bottlenecks."""
    return Student(
        functools.partial(resnet.make, depths=depths, bottleneck=True, variant="d"),
        head=("fc/kernel", "fc/bias"),
        timm=name,
        small_stem=("model.conv1[0].stride = (1, 1)", "model.maxpool = torch.nn.Identity()"),
    )


def _regnet(architecture: regnet.Architecture, **others: Any) -> Student:
    return Student(
        functools.partial(regnet.make, architecture),
        head=("head_fc/kernel", "head_fc/bias"),
        small_stem=("model.stem.conv.stride = (1, 1)",),
        torchvision_names=torchvision_names.regnet(architecture.depths),
        **others,
    )


def _inverted(architecture: architectures.Architecture, **others: Any) -> Student:
    """Returns the record of an inverted-residual network."""
    return Student(
        functools.partial(inverted_residual.make, architecture),
        head=("classifier/kernel", "classifier/bias"),
        small_stem=("model.conv_stem.stride = (1, 1)",),
        **others,
    )


def _mobilenet_v2(width: float, **others: Any) -> Student:
    architecture = mobilenets.mobilenet_v2(width)
    names = torchvision_names.mobilenet_v2(architecture)
    return _inverted(architecture, torchvision_names=names, **others)


def _efficientnet(architecture: architectures.Architecture, **others: Any) -> Student:
    names = torchvision_names.efficientnet(architecture)
    return _inverted(architecture, torchvision_names=names, **others)


_efficientnet_v2 = functools.partial(_efficientnet, paper="efficientnet_v2")


def _vit(variant: str, **others: Any) -> Student:
    """Returns the record of a ViT, whose positions fix the size of its images."""
    size = vit.VARIANTS[variant]
    return Student(
        functools.partial(vit_student.make, size),
        head=("head/kernel", "head/bias"),
        stems=vit_student.STEMS,
        patch=size.patch,
        architecture=vit_student.ARCHITECTURE,
        timm_options=vit_student.timm_options,
        pretrained_rates={"sgd": (0.001, 0.003, 0.01), "adamw": (1e-4, 3e-4, 1e-3)},
        **others,
    )


STUDENTS: dict[str, Student] = {
    "resnet18": _resnet("resnet18", 2, 2, 2, 2, paper="resnet18"),
    "resnet34": _resnet("resnet34", 3, 4, 6, 3),
    "resnet50": _resnet("resnet50", 3, 4, 6, 3, bottleneck=True),
    "resnet26d": _resnet_d("resnet26d", 2, 2, 2, 2),
    "resnet50d": _resnet_d("resnet50d", 3, 4, 6, 3),
    "regnety_004": _regnet(regnet.REGNETY_400MF, timm="regnety_004", torchvision="regnet_y_400mf"),
    "regnety_008": _regnet(regnet.REGNETY_800MF, timm="regnety_008"),
    "mobilenet_v2": _mobilenet_v2(
        1.0, timm="mobilenetv2_100", torchvision="mobilenet_v2", paper="mobilenet_v2"
    ),
    "mobilenet_v2_035": _mobilenet_v2(0.35, timm="mobilenetv2_035"),
    "mobilenet_v2_050": _mobilenet_v2(0.5, timm="mobilenetv2_050"),
    "mobilenet_v2_075": _mobilenet_v2(0.75, timm="mobilenetv2_075"),
    "mobilenet_v2_140": _mobilenet_v2(1.4, timm="mobilenetv2_140"),
    **{
        name: _inverted(architecture, timm=name)
        for name, architecture in {
            "mobilenetv3_small_100": mobilenets.MOBILENET_V3_SMALL,
            "mobilenetv3_large_100": mobilenets.MOBILENET_V3_LARGE,
            "mobilenetv4_conv_small": mobilenets.MOBILENET_V4_SMALL,
            "mobilenetv4_conv_medium": mobilenets.MOBILENET_V4_MEDIUM,
        }.items()
    },
    "efficientnet_lite0": _inverted(architectures.EFFICIENTNET_LITE0, timm="tf_efficientnet_lite0"),
    "efficientnet_lite1": _inverted(architectures.EFFICIENTNET_LITE1, timm="tf_efficientnet_lite1"),
    "efficientnet_lite2": _inverted(architectures.EFFICIENTNET_LITE2, timm="tf_efficientnet_lite2"),
    "efficientnet_lite3": _inverted(architectures.EFFICIENTNET_LITE3, timm="tf_efficientnet_lite3"),
    "efficientnet_lite4": _inverted(architectures.EFFICIENTNET_LITE4, timm="tf_efficientnet_lite4"),
    "efficientnet_b0": _efficientnet(
        architectures.EFFICIENTNET_B0, timm="efficientnet_b0", torchvision="efficientnet_b0"
    ),
    "efficientnet_v2_b0": _efficientnet_v2(
        architectures.EFFICIENTNET_V2_B0, timm="tf_efficientnetv2_b0"
    ),
    "efficientnet_v2_s": _efficientnet_v2(
        architectures.EFFICIENTNET_V2_S, timm="tf_efficientnetv2_s", torchvision="efficientnet_v2_s"
    ),
    "efficientnet_v2_m": _efficientnet_v2(
        architectures.EFFICIENTNET_V2_M, timm="tf_efficientnetv2_m", torchvision="efficientnet_v2_m"
    ),
    "vit_tiny_patch16": _vit("Ti/16", timm="vit_tiny_patch16_224"),
    "vit_small_patch16": _vit("S/16", timm="vit_small_patch16_224"),
}
