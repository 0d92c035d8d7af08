"""Imports torch, torchvision, timm and transformers; skips tests that need a missing package."""

import importlib.util
import pathlib
import re
import warnings
from typing import Any

import pytest


def torch() -> Any:
    """Returns the torch package."""
    return _imported("torch")


def timm() -> Any:
    """Returns the timm package."""
    _imported("torch")
    _declare_operators()
    return _imported("timm")


def torchvision() -> Any:
    """Returns the torchvision package; tests use only its models."""
    _imported("torch")
    _declare_operators()
    return _imported("torchvision")


def transformers(name: str, **settings: Any) -> Any:
    """Makes a model of transformers with random weights, in evaluation mode.

    Args:
        name: Its class, with a config class of its own, such as "ViTModel".
        **settings: Of its config class; `vision` are those of the image tower of a two-tower model,
            whose text tower is as small as can be.
    """
    cls = _of_transformers(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings of these packages are not ours to fix.
        if "vision" in settings:
            text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
            text |= {"num_attention_heads": 1, "vocab_size": 11, "projection_dim": 8}
            settings = {"vision_config": settings.pop("vision"), "text_config": text, **settings}
        model = cls(cls.config_class(**settings)).eval()
    generator = torch().Generator().manual_seed(0)
    with torch().no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model


def transformers_config(name: str) -> Any:
    """Makes a config of transformers, of a class such as "ViTConfig", with its defaults."""
    return _of_transformers(name)()


def resnet4(classes: int) -> Any:
    """Makes timm's ResNet with one block, which is the student of tests/tiny_run.py."""
    resnet = timm().models.resnet
    model = resnet.ResNet(resnet.BasicBlock, (1,) * 4, num_classes=classes, channels=(64,) * 4)
    model.layer2 = model.layer3 = model.layer4 = torch().nn.Identity()  # It always has four stages.
    return model


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings of these packages are not ours to fix.
        found = pytest.importorskip(name, reason=f"Needs {name}: pip install '.[peers]'.")
    if name == "torch":
        found.set_num_threads(1)  # Several test processes share the cores.
    return found


def _of_transformers(name: str) -> Any:
    """Returns a class of transformers."""
    _imported("torch")
    _declare_operators()
    module = _imported("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its modules are imported when they are first used.
        return getattr(module, name)


def _declare_operators() -> None:
    """Declares torchvision's operators if its binary is for another build of torch.

    Torchvision has no wheel for torch's CPU build. The usual wheel then cannot load its detection
    operators, which no test uses, and its import fails because their names are missing.
    """
    torch = _imported("torch")
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch, "_remem_declared"):
        return
    text = (pathlib.Path(found.origin).parent / "_meta_registrations.py").read_text()
    names = set(re.findall(r'register_meta\("(\w+)"', text))
    names |= set(re.findall(r'register_fake\("torchvision::(\w+)"', text))
    if torch.version.cuda is None:
        torch._remem_declared = torch.library.Library("torchvision", "DEF")
        for name in sorted(names):
            torch._remem_declared.define(f"{name}(Tensor x) -> Tensor")
