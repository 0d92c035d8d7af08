"""Students, read from and written to the files of timm and torchvision."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from remem_jax.checks import one_of
from remem_jax.records import Variables
from remem_jax.weights import matching, timm, torch_names

FORMS = ("timm", "torchvision")
# Our students are the networks of timm of these names.
TIMM = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v2_035": "mobilenetv2_035",
    "mobilenet_v2_050": "mobilenetv2_050",
    "mobilenet_v2_075": "mobilenetv2_075",
    "mobilenet_v2_140": "mobilenetv2_140",
    "efficientnet_v2_b0": "tf_efficientnetv2_b0",
    "efficientnet_v2_s": "tf_efficientnetv2_s",
    "efficientnet_v2_m": "tf_efficientnetv2_m",
}


# Changes to timm's networks, after which they have our small stem; the model is `model`.
_SMALL_STEM_OF_RESNETS = (
    "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
    "model.maxpool = torch.nn.Identity()",
)
_SMALL_STEM = ("model.conv_stem.stride = (1, 1)",)


def timm_stem(name: str) -> tuple[str, ...]:
    """Lines of Python that give timm's network of one of `TIMM` our small stem."""
    return _SMALL_STEM_OF_RESNETS if name.startswith("resnet") else _SMALL_STEM


def load(path: str | os.PathLike[str], model: nn.Module) -> Variables:
    """Variables of a student from a .safetensors file, names and shapes checked both ways.

    Whose names they are is recognised.

    Args:
        path: Of timm's names, or of torchvision's.
        model: From `models.make`, with as many classes as the file's.

    Raises:
        SettingError: If the file is missing or broken, or arrays are missing, unexpected or
            mis-shaped; each is named.
    """
    arrays, _ = timm.unwrapped(timm.read(path), os.fspath(path))
    matching.require_finite(arrays, os.fspath(path))
    is_torchvision = any(name.startswith("features.") for name in arrays)
    convert = torch_names.from_torchvision if is_torchvision else torch_names.from_timm
    variables = convert(arrays)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    matching.require_match(
        {name: np.asarray(array) for name, array in _named(variables).items()},
        {name: tuple(leaf.shape) for name, leaf in _named(shapes).items()},
        os.fspath(path),
        "make the model that the file is of, with its classes and its stem.",
    )
    return variables


def save(
    path: str | os.PathLike[str],
    variables: Variables,
    *,
    form: str = "timm",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a student's variables as a .safetensors file; whole or not at all.

    Args:
        path: The file.
        variables: Of a student.
        form: Whose names: "timm" or "torchvision" (which has neither the widths nor the B0 of
            timm, and for a ResNet has timm's names).
        metadata: Texts for the header of the file.
    """
    one_of("form", form, FORMS)
    convert = torch_names.to_timm if form == "timm" else torch_names.to_torchvision
    timm.save(pathlib.Path(path), convert(jax.device_get(variables)), metadata)


def _named(variables: Variables) -> dict[str, Any]:
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    return {str(name): leaf for name, leaf in flat.items()}
