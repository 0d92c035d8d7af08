"""Fits the arrays of a file to a model: checks names and shapes, resizes positions."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax.checks import SettingError, one_of
from remem_jax.weights.names import POSITION

HEAD = ("head/kernel", "head/bias")
PRE_LOGITS = ("pre_logits/kernel", "pre_logits/bias")
TEACHER_ADVICE = "set config.teacher.variant to the checkpoint's."
RESIZES = ("vit_jax", "timm", "dinov2")
_LISTED = 10  # Number of names in an error.


class Report(NamedTuple):
    """The names of a file's arrays, by what was done with them."""

    used: tuple[str, ...]
    resized: tuple[str, ...]
    reset: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """Returns one line for the log, which counts the unchanged arrays and lists the others."""
        clauses = [f"{len(self.used)} arrays used"]
        for kind in ("resized", "reset", "ignored"):
            names = getattr(self, kind)
            if names:
                clauses.append(f"{kind}: {listed(names)}")
        return "; ".join(clauses)


@functools.cache
def log_loaded(source: str, form: str, report: Report) -> None:
    """Logs what was read from a file; once, since every stage of a run reads it again."""
    logging.info("Loaded %s (%s): %s.", source, form, report)


def fit(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    reset_head: bool,
    source: str,
    resize: str = "vit_jax",
    prefix: int = 1,
    advice: str = TEACHER_ADVICE,
) -> tuple[dict[str, np.ndarray], Report]:
    """Fits the arrays of a file to the shapes of a model, and reports what was done.

    Args:
        arrays: Arrays of the file.
        shapes: Shapes of the model's parameters.
        reset_head: Whether the head is reset to zeros.
        source: Path of the file.
        resize: See `resize_positions`.
        prefix: See `resize_positions`.
        advice: End of the error.

    Raises:
        SettingError: If arrays are missing, unexpected or mis-shaped; the message lists them.
    """
    reset = tuple(name for name in HEAD if name in shapes) if reset_head else ()
    ignored = tuple(name for name in PRE_LOGITS if name in arrays and name not in shapes)
    params = {n: a for n, a in arrays.items() if n not in ignored and n not in reset}
    resized = ()
    if POSITION in params and POSITION in shapes and params[POSITION].shape != shapes[POSITION]:
        old, new = params[POSITION], shapes[POSITION]
        if old.ndim == len(new) and old.shape[-1] == new[-1]:
            params[POSITION] = resize_positions(old, new[1], prefix=prefix, way=resize)
            resized = (POSITION,)
    expected = {name: shape for name, shape in shapes.items() if name not in reset}
    require_match(params, expected, source, advice)
    used = tuple(name for name in params if name not in resized)
    params.update({name: np.zeros(shapes[name], np.float32) for name in reset})
    return params, Report(used, resized, reset, ignored)


def resize_positions(
    positions: np.ndarray, tokens: int, *, prefix: int = 1, way: str = "vit_jax"
) -> np.ndarray:
    """Resizes the position embedding of a square grid.

    Args:
        positions: An array (1, prefix + old * old, features). The first positions stay unchanged.
        tokens: Number of positions of the result: prefix + new * new.
        prefix: Number of positions of [CLS] and registers, which are the first.
        way: "vit_jax" (and big_vision) for linear interpolation with aligned corners; "timm" for
            linear interpolation with aligned pixel centres, as timm resizes the positions of .npz
            files; "dinov2" for antialiased cubic interpolation, as DINOv2 with registers resizes
            its positions, and timm those of all other files.

    Returns:
        An array (1, tokens, features).
    """
    one_of("resize", way, RESIZES)
    first = prefix
    old, new = (math.isqrt(max(number - first, 0)) for number in (positions.shape[1], tokens))
    if old**2 + first != positions.shape[1] or new**2 + first != tokens:
        raise SettingError(
            f"Cannot resize {positions.shape[1]} positions to {tokens}: not squares."
        )
    grid = positions[0, first:].reshape(old, old, -1)
    if way == "vit_jax":
        from scipy import ndimage  # Imported here because it takes long.

        grid = ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    elif way == "dinov2":
        shape = (new, new, grid.shape[-1])
        grid = np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))
    else:
        rows = _linear_weights(old, new)
        grid = np.einsum("ro,opd,cp->rcd", rows, grid, rows).astype(np.float32)
    return np.concatenate([positions[:, :first], grid.reshape(1, new * new, -1)], axis=1)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) of a linear interpolation with aligned pixel centres."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(centres.astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - (centres - low))
    np.add.at(weights, (np.arange(new), high), centres - low)
    return weights


def require_match(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    advice: str = TEACHER_ADVICE,
) -> None:
    """Raises `SettingError`, which lists the differences, unless names and shapes are equal."""
    problems = {
        "missing": [name for name in expected if name not in arrays],
        "unexpected": [name for name in arrays if name not in expected],
        "mis-shaped": [
            f"{name} {arrays[name].shape} instead of {expected[name]}"
            for name in expected
            if name in arrays and arrays[name].shape != expected[name]
        ],
    }
    if any(problems.values()):
        lists = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise SettingError(f"{source} is not a checkpoint of this model ({lists}); {advice}")


def require_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raises `SettingError`, which lists the arrays, if any holds NaN or infinity."""
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise SettingError(
            f"{source} holds NaN or infinity, in {listed(bad)}: the file is damaged, or its "
            "training diverged. Take another checkpoint; set config.teacher.init."
        )


def listed(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
