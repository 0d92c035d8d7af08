"""Imports torch, torchvision and timm; tests that need a missing package are skipped."""

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
