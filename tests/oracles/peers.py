"""torch, torchvision and timm, as tests import them; tests skip where they are not installed."""

import importlib.util
import pathlib
import re
import warnings
from typing import Any

import pytest


def torch() -> Any:
    """The torch package."""
    return _imported("torch")


def timm() -> Any:
    """The timm package."""
    _imported("torch")
    _declare_operators()
    return _imported("timm")


def torchvision() -> Any:
    """The torchvision package; only its models are used."""
    _imported("torch")
    _declare_operators()
    return _imported("torchvision")


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What a peer warns of is not ours to mend.
        found = pytest.importorskip(name, reason=f"Needs {name}: pip install '.[peers]'.")
    if name == "torch":
        found.set_num_threads(1)  # Threads of several test processes wait for each other's.
    return found


def _declare_operators() -> None:
    """Declares torchvision's own operators where its binary is for another build of torch.

    Torchvision has no wheel for torch's CPU build; the usual one then cannot load its operators
    (of detection, which no test uses) and its import fails for want of their names.
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
