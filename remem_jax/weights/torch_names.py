"""Students under the names that timm and torchvision give them, and back.

Only NumPy is needed. Names that no student has are carried over as they are, for whoever checks
them against a model to report.

Source: github.com/huggingface/pytorch-image-models, `resnet.py` and `_efficientnet_blocks.py`;
github.com/pytorch/vision, `mobilenetv2.py` and `efficientnet.py`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from remem_jax.records import Variables

Arrays = dict[str, np.ndarray]
_BLOCK = re.compile(r"(blocks_|layer)(\d+)_(\d+)")
_DOWNSAMPLE = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
_LEAVES = {
    "params": {"kernel": "weight", "scale": "weight", "bias": "bias"},
    "batch_stats": {"mean": "running_mean", "var": "running_var"},
}
_STEPS = "num_batches_tracked"  # Of torch's BatchNorm, which uses it only without a momentum.
# Modules of a block, timm's name to torchvision's. The first whose last entry is there is it.
_MOBILE = (
    {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"},
    {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"},
)
_EFFICIENT = (
    {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"}
    | {"se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2", "conv_pwl": "3.0", "bn3": "3.1"},
    {"conv_exp": "0.0", "bn1": "0.1", "conv_pwl": "1.0", "bn2": "1.1"},
    {"conv": "0.0", "bn1": "0.1"},
)
_MOBILE_REPEATS = (1, 2, 3, 4, 3, 3, 1)  # Torchvision counts MobileNetV2's blocks through.


def to_timm(variables: Variables) -> Arrays:
    """A student's variables as timm's state dict has them.

    Args:
        variables: Nested, {"params": ..., "batch_stats": ...}.

    Returns:
        By name: kernels with the output channels first (a depthwise one as (channel, 1, side,
        side), a linear one as (class, feature)), and `num_batches_tracked`, 0, for each BatchNorm.
    """
    found: Arrays = {}
    for collection, leaves in _LEAVES.items():
        for path, array in _flat(variables.get(collection, {})).items():
            module, leaf = _dotted(path[:-1]), path[-1]
            name = f"{module}.{leaves.get(leaf, leaf)}" if module else leaf
            array = np.asarray(array)
            found[name] = _outputs_first(array) if leaf == "kernel" else array
            if leaf == "var":
                found[f"{module}.{_STEPS}"] = np.zeros((), np.int64)
    return found


def from_timm(arrays: Mapping[str, np.ndarray]) -> Variables:
    """Arrays of timm's state dict as a student's variables, nested; undoes `to_timm`."""
    found: dict[str, dict[tuple[str, ...], np.ndarray]] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        *modules, leaf = name.split(".")
        path = _undotted(".".join(modules))
        if leaf == _STEPS:
            continue
        if leaf in ("running_mean", "running_var"):
            found["batch_stats"][*path, leaf.removeprefix("running_")] = array
        elif leaf == "weight" and array.ndim > 1:
            found["params"][*path, "kernel"] = _outputs_last(array)
        else:
            found["params"][*path, "scale" if leaf == "weight" else leaf] = array
    return {
        collection: traverse_util.unflatten_dict(flat) for collection, flat in found.items() if flat
    }


def to_torchvision(variables: Variables) -> Arrays:
    """A student's variables as torchvision's state dict has them; for a ResNet that is timm's."""
    arrays = to_timm(variables)
    return _renamed(arrays, dict(_modules(arrays)))


def from_torchvision(arrays: Mapping[str, np.ndarray]) -> Variables:
    """Arrays of torchvision's state dict as a student's variables; undoes `to_torchvision`."""
    return from_timm(_renamed(arrays, {other: timm for timm, other in _modules(arrays)}))


def _modules(arrays: Collection[str]) -> list[tuple[str, str]]:
    """Modules of a MobileNetV2 or EfficientNetV2 by timm's name and torchvision's.

    The arrays may be named either way. Of a ResNet, and of what is no student, there are none.
    """
    modules = {name.rpartition(".")[0] for name in arrays}
    if modules.isdisjoint({"conv_stem", "features.0.0"}):
        return []
    if not modules.isdisjoint({"blocks.0.0.conv_dw", "features.1.conv.0.0"}):
        places = [(i, j) for i, n in enumerate(_MOBILE_REPEATS) for j in range(n)]
        blocks = {
            f"blocks.{i}.{j}.": f"features.{n}.conv." for n, (i, j) in enumerate(places, start=1)
        }
        kinds, last = _MOBILE, len(places) + 1
    else:
        found = (re.match(r"blocks\.(\d+)\.(\d+)\.|features\.(\d+)\.(\d+)\.b", m) for m in modules)
        matches = [match for match in found if match]
        pairs = {(int(m[1]), int(m[2])) if m[1] else (int(m[3]) - 1, int(m[4])) for m in matches}
        blocks = {f"blocks.{i}.{j}.": f"features.{i + 1}.{j}.block." for i, j in sorted(pairs)}
        kinds, last = _EFFICIENT, max((i for i, _ in pairs), default=-1) + 2
    ends = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "classifier.1"}
    ends |= {"conv_head": f"features.{last}.0", "bn2": f"features.{last}.1"}
    for timm, other in blocks.items():
        for kind in kinds:
            inner = {timm + a: other + b for a, b in kind.items()}
            if not modules.isdisjoint(list(inner.items())[-1]):
                ends |= inner
                break
    return list(ends.items())


def _renamed(arrays: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> Arrays:
    found = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        found[f"{modules[module]}.{leaf}" if module in modules else name] = array
    return found


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    flat: Any = traverse_util.flatten_dict(tree)
    return flat


def _dotted(path: Collection[str]) -> str:
    """A module's path as timm writes it: ("layer1_0", "downsample_bn") is layer1.0.downsample.1."""
    names = []
    for part in path:
        match = _BLOCK.fullmatch(part)
        if match:
            names.append(f"{match[1].replace('_', '.')}{match[2]}.{match[3]}")
        else:
            names.append(_DOWNSAMPLE.get(part, part))
    return ".".join(names)


def _undotted(module: str) -> tuple[str, ...]:
    """A module of timm's as our path; undoes `_dotted`."""
    module = re.sub(r"^blocks\.(\d+)\.(\d+)\b", r"blocks_\1_\2", module)
    module = re.sub(r"^layer(\d+)\.(\d+)\b", r"layer\1_\2", module)
    for ours, theirs in _DOWNSAMPLE.items():
        module = re.sub(rf"\b{re.escape(theirs)}$", ours, module)
    return tuple(module.split(".")) if module else ()


def _outputs_first(kernel: np.ndarray) -> np.ndarray:
    turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
    return np.ascontiguousarray(turned)


def _outputs_last(weight: np.ndarray) -> np.ndarray:
    turned = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    return np.ascontiguousarray(turned)
