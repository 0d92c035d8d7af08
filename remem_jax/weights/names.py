"""The names under which vit_jax and big_vision store a ViT, to and from ours.

Ours are those of the AugReg files: positions with [CLS] first in
`Transformer/posembed_input`, submodules of a block counted together.

Source: github.com/google-research/vision_transformer and github.com/google-research/big_vision.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from remem_jax.checks import SettingError

POSITION = "Transformer/posembed_input/pos_embedding"
EMBEDDING = "embedding/kernel"
# Where a ViT may lie in a file: at its root, in a training state, in a two-tower model.
PREFIXES = ("", "params/", "opt/target/", "target/", "params/img/", "img/")
_POSITIONS = (POSITION, "Transformer/pos_embedding", "pos_embedding")
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(\w+?)_(\d+)/(.+)")
_OURS = {"LayerNorm": (0, 2), "MultiHeadDotProductAttention": (1,), "MlpBlock": (3,)}
_INLINED = ("probe", "MultiHeadDotProductAttention_0/", "LayerNorm_0/", "MlpBlock_0/")
_GROUP_NORM = re.compile(r"gn(\d+|_root|_proj)/(scale|bias)$")


def prefix(names: Collection[str], subtree: str, source: str) -> str:
    """Where the ViT lies in a file: what its names start with.

    Args:
        names: All names of the file.
        subtree: What the user named, such as "params/img"; "" to look for it.
        source: The file, for the error.

    Raises:
        SettingError: If no ViT is found.
    """
    found = set(names)
    tried = (f"{subtree.strip('/')}/",) if subtree else PREFIXES
    for start in tried:
        if start + EMBEDDING in found:
            return start
    some = ", ".join(sorted(found)[:5])
    raise SettingError(
        f"{source} holds no ViT: no array is called "
        f"{' or '.join(start + EMBEDDING for start in tried)}; it has {some or 'nothing'} ... "
        "Name the place of the ViT in the file as FILE.npz:sub/tree in config.teacher.init."
    )


def to_ours(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Arrays of vit_jax or big_vision under our names, and which of the two they came from."""
    form = "vit_jax" if POSITION in arrays else "big_vision"
    found = _unstacked(arrays)
    if "probe" in found:  # Of the time when big_vision's attention pooling had no module.
        found = {
            f"MAPHead_0/{name}" if name.startswith(_INLINED) else name: array
            for name, array in found.items()
        }
    found = {
        name: array.reshape(-1) if _GROUP_NORM.search(name) else array
        for name, array in found.items()
    }
    return _with_our_positions(_renumbered(found)), form


def to_big_vision(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under our names as big_vision's `vit.py` has them.

    The position of [CLS] goes into `cls`; the two forms are the same function.

    Raises:
        SettingError: If the model is a hybrid, which big_vision's ViT is not.
    """
    if "conv_root/kernel" in arrays:
        raise SettingError("big_vision has no hybrid ViTs; save it as vit_jax.")
    found = {}
    for name, array in arrays.items():
        match = _BLOCK.fullmatch(name)
        if match:
            block, kind, number, rest = match.groups()
            index = _OURS[kind].index(int(number))
            found[f"Transformer/encoderblock_{block}/{kind}_{index}/{rest}"] = array
        else:
            found[name] = array
    if POSITION in found:
        positions = found.pop(POSITION)
        if "cls" in found:
            found["cls"] = found["cls"] + positions[:, :1]
            positions = positions[:, 1:]
        found["pos_embedding"] = positions
    return found


def to_vit_jax(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under our names as vit_jax has them: the same, where vit_jax has such a model.

    Raises:
        SettingError: If the model pools by attention or computes its positions.
    """
    if not is_of_vit_jax(arrays):
        raise SettingError(
            "vit_jax has no ViTs with attention pooling or computed positions; save it as "
            "big_vision."
        )
    return dict(arrays)


def is_of_vit_jax(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether vit_jax has such a model: learned positions, no attention pooling."""
    return POSITION in arrays and not any(name.startswith("MAPHead_0/") for name in arrays)


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One entry per block, where a scan stacked them on a leading axis."""
    start, found = "Transformer/encoderblock/", {}
    for name, array in arrays.items():
        if name.startswith(start):
            for i, layer in enumerate(array):
                found[f"Transformer/encoderblock_{i}/{name.removeprefix(start)}"] = layer
        else:
            found[name] = array
    return found


def _renumbered(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Submodules of a block counted together, as the AugReg files do, or class by class."""
    matches = {name: _BLOCK.fullmatch(name) for name in arrays}
    numbers: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, matches.values()):
        numbers.setdefault((match[1], match[2]), set()).add(int(match[3]))
    found = {}
    for name, array in arrays.items():
        match = matches[name]
        if match and match[2] in _OURS:
            block, kind, number, rest = match.groups()
            place = sorted(numbers[block, kind]).index(int(number))
            if place < len(_OURS[kind]) and not _is_ours(kind, numbers[block, kind]):
                number = str(_OURS[kind][place])
            found[f"Transformer/encoderblock_{block}/{kind}_{number}/{rest}"] = array
        else:
            found[name] = array
    return found


def _is_ours(kind: str, numbers: Iterable[int]) -> bool:
    """Whether submodules are counted as ours: a renamed one must not take another's place."""
    return set(numbers) <= set(_OURS[kind])


def _with_our_positions(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Positions in their place, the first of them [CLS]'s where there is one."""
    found = dict(arrays)
    for place in _POSITIONS:
        if place not in found:
            continue
        positions = found.pop(place)
        if positions.ndim == 3:
            has_cls_position = math.isqrt(positions.shape[1] - 1) ** 2 + 1 == positions.shape[1]
            if "cls" in found and not has_cls_position:
                positions = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
            elif "cls" not in found and has_cls_position and positions.shape[1] > 2:
                positions = positions[:, 1:]  # As big_vision reads such files.
        found[POSITION] = positions
        break
    return found
