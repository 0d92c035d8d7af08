"""Translates vit_jax's and big_vision's names of a ViT's parameters to ours and back.

Ours are those of the AugReg files: positions, that of [CLS] first, are in
`Transformer/posembed_input`, and the submodules of a block are numbered together.

Source: github.com/google-research/vision_transformer and github.com/google-research/big_vision.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from remem_jax.checks import SettingError

POSITION = "Transformer/posembed_input/pos_embedding"
EMBEDDING = "embedding/kernel"
# Where a file may have its ViT: at the root, in a training state, in a two-tower model.
PREFIXES = ("", "params/", "opt/target/", "target/", "params/img/", "img/")
_POSITIONS = (POSITION, "Transformer/pos_embedding", "pos_embedding")
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(\w+?)_(\d+)/(.+)")
_OURS = {"LayerNorm": (0, 2), "MultiHeadDotProductAttention": (1,), "MlpBlock": (3,)}
_INLINED = ("probe", "MultiHeadDotProductAttention_0/", "LayerNorm_0/", "MlpBlock_0/")
_GROUP_NORM = re.compile(r"gn(\d+|_root|_proj)/(scale|bias)$")


def prefix(names: Collection[str], subtree: str, source: str) -> str:
    """Returns the prefix of the ViT's names in a file.

    Args:
        names: All names in the file.
        subtree: The prefix that the user gave, such as "params/img"; "" to search for it.
        source: The file, for the error.

    Raises:
        SettingError: If there is no ViT.
    """
    stored = set(names)
    tried = (f"{subtree.strip('/')}/",) if subtree else PREFIXES
    for start in tried:
        if start + EMBEDDING in stored:
            return start
    first = ", ".join(sorted(stored)[:5])
    raise SettingError(
        f"{source} holds no ViT: no array is called "
        f"{' or '.join(start + EMBEDDING for start in tried)}; it has {first or 'nothing'} ... "
        "Name the place of the ViT in the file as FILE.npz:sub/tree in config.teacher.init."
    )


def to_ours(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Renames the arrays of vit_jax or big_vision to ours; also returns which form they had."""
    form = "vit_jax" if POSITION in arrays else "big_vision"
    renamed = _unstacked(arrays)
    if "probe" in renamed:  # Old files of big_vision, whose attention pooling had no module.
        renamed = {
            f"MAPHead_0/{name}" if name.startswith(_INLINED) else name: array
            for name, array in renamed.items()
        }
    renamed = {
        name: array.reshape(-1) if _GROUP_NORM.search(name) else array
        for name, array in renamed.items()
    }
    return _with_our_positions(_renumbered(renamed)), form


def to_big_vision(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames our arrays to those of big_vision's `vit.py`.

    The position of [CLS] is added to `cls`, which leaves the function unchanged.

    Raises:
        SettingError: If the model is a hybrid, which big_vision does not have.
    """
    if "conv_root/kernel" in arrays:
        raise SettingError("big_vision has no hybrid ViTs; save it as vit_jax.")
    renamed = {}
    for name, array in arrays.items():
        match = _BLOCK.fullmatch(name)
        if match:
            block, kind, number, rest = match.groups()
            index = _OURS[kind].index(int(number))
            renamed[f"Transformer/encoderblock_{block}/{kind}_{index}/{rest}"] = array
        else:
            renamed[name] = array
    if POSITION in renamed:
        positions = renamed.pop(POSITION)
        if "cls" in renamed:
            renamed["cls"] = renamed["cls"] + positions[:, :1]
            positions = positions[:, 1:]
        renamed["pos_embedding"] = positions
    return renamed


def to_vit_jax(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns our arrays unchanged if vit_jax has such a model.

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
    """Returns whether vit_jax has such a model: learned positions and no attention pooling."""
    return POSITION in arrays and not any(name.startswith("MAPHead_0/") for name in arrays)


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits blocks that a scan stacked on a leading axis."""
    start, renamed = "Transformer/encoderblock/", {}
    for name, array in arrays.items():
        if name.startswith(start):
            for i, layer in enumerate(array):
                renamed[f"Transformer/encoderblock_{i}/{name.removeprefix(start)}"] = layer
        else:
            renamed[name] = array
    return renamed


def _renumbered(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers the submodules of a block together, as in AugReg, not separately for each class."""
    matches = {name: _BLOCK.fullmatch(name) for name in arrays}
    numbers: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, matches.values()):
        numbers.setdefault((match[1], match[2]), set()).add(int(match[3]))
    renamed = {}
    for name, array in arrays.items():
        match = matches[name]
        if match and match[2] in _OURS:
            block, kind, number, rest = match.groups()
            index = sorted(numbers[block, kind]).index(int(number))
            if index < len(_OURS[kind]) and not _is_ours(kind, numbers[block, kind]):
                number = str(_OURS[kind][index])
            renamed[f"Transformer/encoderblock_{block}/{kind}_{number}/{rest}"] = array
        else:
            renamed[name] = array
    return renamed


def _is_ours(kind: str, numbers: Iterable[int]) -> bool:
    """Returns whether submodules are numbered as ours, so that they must not be renumbered."""
    return set(numbers) <= set(_OURS[kind])


def _with_our_positions(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames positions to ours, with that of [CLS] first if there is a [CLS]."""
    renamed = dict(arrays)
    for name in _POSITIONS:
        if name not in renamed:
            continue
        positions = renamed.pop(name)
        if positions.ndim == 3:
            has_cls_position = math.isqrt(positions.shape[1] - 1) ** 2 + 1 == positions.shape[1]
            if "cls" in renamed and not has_cls_position:
                positions = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
            elif "cls" not in renamed and has_cls_position and positions.shape[1] > 2:
                positions = positions[:, 1:]  # As in big_vision, for such files.
        renamed[POSITION] = positions
        break
    return renamed
