"""Converts the variables of students to and from the state dicts of timm and torchvision.

Neither timm nor torch is needed. Names that no student has are kept, so that a comparison with the
model can report them.

Source: github.com/huggingface/pytorch-image-models, `resnet.py` and `_efficientnet_blocks.py`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from remem_jax import models
from remem_jax.records import Variables

Arrays = dict[str, np.ndarray]
_BLOCK = re.compile(r"(blocks_|layer|s)(\d+)_(b?\d+)")
_TORCHVISION = re.compile(r"(blocks|features|s\d|trunk_output)\.")  # Names of blocks.
_PLACES = {  # Our names of modules by timm's, where timm has a place in a sequence.
    "downsample_conv": "downsample.0",
    "downsample_bn": "downsample.1",
    "pooled_conv": "downsample.1",  # After the average pooling of a ResNet-D.
    "pooled_bn": "downsample.2",
    "head_fc": "head.fc",
    **{f"conv1_{place}": f"conv1.{place}" for place in (0, 1, 3, 4, 6)},  # The deep stem.
}
_POOLED = ("pooled_conv", "pooled_bn")
_LEAVES = {
    "params": {"kernel": "weight", "scale": "weight", "bias": "bias"},
    "batch_stats": {"mean": "running_mean", "var": "running_var"},
}
_STEPS = "num_batches_tracked"  # In torch's BatchNorm, which uses it only without a momentum.


def to_timm(variables: Variables) -> Arrays:
    """Converts a student's variables to timm's state dict.

    Args:
        variables: Nested variables, {"params": ..., "batch_stats": ...}.

    Returns:
        Arrays by name: kernels with the output channels first (a depthwise one as (channel, 1,
        side, side), a linear one as (class, feature)), and `num_batches_tracked`, 0, for each
        BatchNorm.
    """
    state: Arrays = {}
    for collection, leaves in _LEAVES.items():
        for path, array in _flat(variables.get(collection, {})).items():
            module, leaf = _dotted(path[:-1]), path[-1]
            name = f"{module}.{leaves.get(leaf, leaf)}" if module else leaf
            array = np.asarray(array)
            state[name] = _outputs_first(array) if leaf == "kernel" else array
            if leaf == "var":
                state[f"{module}.{_STEPS}"] = np.zeros((), np.int64)
    return state


def from_timm(arrays: Mapping[str, np.ndarray]) -> Variables:
    """Converts timm's state dict to a student's nested variables; undoes `to_timm`."""
    collections: dict[str, dict[tuple[str, ...], np.ndarray]] = {"params": {}, "batch_stats": {}}
    pooled = any(".downsample.2." in name for name in arrays)
    for name, array in arrays.items():
        *modules, leaf = name.split(".")
        path = _undotted(".".join(modules), pooled=pooled)
        if leaf == _STEPS:
            continue
        if leaf in ("running_mean", "running_var"):
            collections["batch_stats"][*path, leaf.removeprefix("running_")] = array
        elif leaf == "weight" and array.ndim > 1:
            collections["params"][*path, "kernel"] = _outputs_last(array)
        else:
            collections["params"][*path, "scale" if leaf == "weight" else leaf] = array
    return {
        collection: traverse_util.unflatten_dict(flat)
        for collection, flat in collections.items()
        if flat
    }


def to_torchvision(variables: Variables) -> Arrays:
    """Converts a student's variables to torchvision's state dict; that of a ResNet is timm's.

    Raises:
        ValueError: If torchvision has no such family of networks.
    """
    arrays = to_timm(variables)
    names = _names(arrays, lambda names: names.keys())
    if names is None or (names and _modules(arrays) != set(names)):
        raise ValueError("torchvision has no names for this student; save it in the form 'timm'.")
    return _renamed(arrays, names)


def is_torchvision(arrays: Collection[str]) -> bool:
    """Returns whether names of arrays are torchvision's; those of ResNets are timm's too."""
    return any(name.startswith(("features.", "trunk_output.")) for name in arrays)


def from_torchvision(arrays: Mapping[str, np.ndarray]) -> Variables:
    """Converts torchvision's state dict to a student's variables; undoes `to_torchvision`."""
    names = _names(arrays, lambda names: names.values()) or {}
    return from_timm(_renamed(arrays, {torchvision: timm for timm, torchvision in names.items()}))


def _names(
    arrays: Collection[str], side: Callable[[Mapping[str, str]], Collection[str]]
) -> Mapping[str, str] | None:
    """Finds the student that has some arrays, by their names.

    Args:
        arrays: Names of arrays, in timm or in torchvision.
        side: Returns timm's or torchvision's names from a student's `torchvision_names`.

    Returns:
        torchvision's names of its modules by timm's, {} for a ResNet; None if no student has all of
        the blocks.
    """
    modules = _modules(arrays)
    if "conv1" in modules:
        return {}
    blocks = {name for name in modules if _TORCHVISION.match(name)}
    students = (student.torchvision_names for student in models.STUDENTS.values())
    fitting = [names for names in students if names and blocks <= set(side(names))]
    return min(fitting, key=len, default=None)  # Small networks are parts of larger ones.


def _modules(arrays: Collection[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in arrays}


def _renamed(arrays: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> Arrays:
    renamed = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else name] = array
    return renamed


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    flat: Any = traverse_util.flatten_dict(tree)
    return flat


def _dotted(path: Collection[str]) -> str:
    """Returns timm's name of a module: layer1.0.downsample.1 for ("layer1_0", "downsample_bn")."""
    names = []
    for name in path:
        match = _BLOCK.fullmatch(name)
        if match:
            names.append(f"{match[1].replace('_', '.')}{match[2]}.{match[3]}")
        else:
            names.append(_PLACES.get(name, name))
    return ".".join(names)


def _undotted(module: str, *, pooled: bool) -> tuple[str, ...]:
    """Returns our path of a module from timm's name; undoes `_dotted`.

    Args:
        module: timm's name.
        pooled: Whether the network has average pooling before its projections, as a ResNet-D.
    """
    module = re.sub(r"^blocks\.(\d+)\.(\d+)\b", r"blocks_\1_\2", module)
    module = re.sub(r"^(layer|s)(\d+)\.(b?\d+)\b", r"\1\2_\3", module)
    for ours, theirs in _PLACES.items():
        if "downsample" not in theirs or pooled == (ours in _POOLED):
            module = re.sub(rf"(^|\.){re.escape(theirs)}$", rf"\1{ours}", module)
    return tuple(module.split(".")) if module else ()


def _outputs_first(kernel: np.ndarray) -> np.ndarray:
    turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
    return np.ascontiguousarray(turned)


def _outputs_last(weight: np.ndarray) -> np.ndarray:
    turned = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    return np.ascontiguousarray(turned)
