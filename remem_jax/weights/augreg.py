"""Checkpoints in the format of AugReg and vit_jax: a flat .npz, names joined by slashes.

Source: Steiner et al. 2021, https://arxiv.org/abs/2106.10270; the names are those of
github.com/google-research/vision_transformer.
"""

import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from flax import traverse_util
from scipy import ndimage

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.records import Params, Variables
from remem_jax.storage import files

POSITION = "Transformer/posembed_input/pos_embedding"
HEAD = ("head/kernel", "head/bias")
PRE_LOGITS = ("pre_logits/kernel", "pre_logits/bias")
_SHOWN = 10  # Names listed in an error.


class Report(NamedTuple):
    """What became of each array of a file, by name."""

    used: tuple[str, ...]
    resized: tuple[str, ...]
    reset: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """One line for the log; lists all but the arrays used as they are."""
        parts = [f"{len(self.used)} arrays used"]
        for kind in ("resized", "reset", "ignored"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{kind}: {', '.join(names)}")
        return "; ".join(parts)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Arrays of a file by name, as float32.

    Raises:
        SettingError: If the file is missing or is not an .npz of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], np.float32) for name in file.files}
    except FileNotFoundError:
        raise SettingError(
            f"There is no checkpoint {os.fspath(path)}; set config.teacher.init."
        ) from None
    except (ValueError, OSError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise SettingError(
            f"{os.fspath(path)} is not an AugReg .npz checkpoint: {error}."
        ) from error


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    image_size: int | None = None,
    reset_head: bool = False,
) -> Variables:
    """Variables of a ViT from a file, names and shapes checked both ways.

    A `pre_logits` layer (the ImageNet-21k originals have one) is dropped, as vit_jax does when
    it fine-tunes. What was used, resized, reset and ignored is logged.

    Args:
        path: An .npz file with AugReg names.
        model: A ViT from `models.make`.
        image_size: Side of the images in pixels, to which the position embedding is resized;
            None keeps the file's.
        reset_head: Start from a head of zeros, for another task; else the file's head is used
            and must fit.

    Returns:
        Variables for `model.apply`.

    Raises:
        SettingError: If arrays are missing, unexpected or mis-shaped; each is named.
    """
    if not isinstance(model, vit.VisionTransformer):
        raise SettingError(f"AugReg files hold ViTs, not a {type(model).__name__}.")
    arrays = read(path)
    size = image_size or _grid(arrays, path) * model.size.patch
    shapes = names_and_shapes(model, size)
    params, report = fit(arrays, shapes, reset_head=reset_head, source=os.fspath(path))
    logging.info("Loaded %s: %s.", os.fspath(path), report)
    return {"params": traverse_util.unflatten_dict(params, sep="/")}


def names_and_shapes(model: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """What a file for a model must hold, by name."""
    flat: dict[Any, Any] = traverse_util.flatten_dict(
        dict(models.shapes(model, image_size)), sep="/"
    )
    return {str(name): tuple(leaf.shape) for name, leaf in flat.items()}


def fit(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    reset_head: bool,
    source: str,
) -> tuple[dict[str, np.ndarray], Report]:
    """Arrays of a file made to fit the shapes of a model, and what became of each.

    Raises:
        SettingError: If arrays are missing, unexpected or mis-shaped; each is named.
    """
    reset = tuple(name for name in HEAD if name in shapes) if reset_head else ()
    ignored = tuple(name for name in PRE_LOGITS if name in arrays)
    found = {n: a for n, a in arrays.items() if n not in ignored and n not in reset}
    resized = ()
    if POSITION in found and POSITION in shapes and found[POSITION].shape != shapes[POSITION]:
        old, new = found[POSITION], shapes[POSITION]
        if old.ndim == len(new) and old.shape[-1] == new[-1]:
            found[POSITION] = resize_positions(old, new[1])
            resized = (POSITION,)
    wanted = {name: shape for name, shape in shapes.items() if name not in reset}
    _require_match(found, wanted, source)
    params = dict(found)
    params.update({name: np.zeros(shapes[name], np.float32) for name in reset})
    used = tuple(name for name in found if name not in resized)
    return params, Report(used, resized, reset, ignored)


def resize_positions(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Position embedding of a square grid, resized to another one the way vit_jax does.

    Args:
        positions: Shape (1, 1 + old * old, features); the first token is [CLS]'s, kept as it is.
        tokens: 1 + new * new.

    Returns:
        Shape (1, tokens, features), by linear interpolation with the corners aligned.
    """
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(tokens - 1)
    if old**2 + 1 != positions.shape[1] or new**2 + 1 != tokens:
        raise SettingError(
            f"Cannot resize {positions.shape[1]} positions to {tokens}: not squares."
        )
    grid = positions[0, 1:].reshape(old, old, -1)
    grid = ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return np.concatenate([positions[:, :1], grid.reshape(1, new * new, -1)], axis=1)


def save(path: str | os.PathLike[str], params: Params, *, dtype: str = "float32") -> None:
    """Writes the parameters of a ViT under AugReg names; whole or not at all."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    arrays: dict[str, Any] = {
        str(name): np.asarray(jax.device_get(leaf), dtype) for name, leaf in flat.items()
    }
    with files.replacing(pathlib.Path(path)) as file:
        np.savez_compressed(file, **arrays)


def _grid(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> int:
    """Side of the file's token grid."""
    if POSITION not in arrays:
        raise SettingError(f"{os.fspath(path)} lacks {POSITION}: not an AugReg ViT.")
    return math.isqrt(arrays[POSITION].shape[1] - 1)


def _require_match(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], source: str
) -> None:
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "mis-shaped": [
            f"{name} {found[name].shape} instead of {wanted[name]}"
            for name in wanted
            if name in found and found[name].shape != wanted[name]
        ],
    }
    if any(problems.values()):
        lists = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise SettingError(
            f"{source} is not a checkpoint of this model ({lists}); "
            "set config.teacher.variant to the checkpoint's."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
