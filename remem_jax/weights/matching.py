"""Arrays of a file made to fit a model: names and shapes both ways, heads, positions."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from remem_jax.checks import SettingError, one_of
from remem_jax.weights.names import POSITION

HEAD = ("head/kernel", "head/bias")
PRE_LOGITS = ("pre_logits/kernel", "pre_logits/bias")
RESIZES = ("vit_jax", "timm")
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
            found = getattr(self, kind)
            if found:
                parts.append(f"{kind}: {listed(found)}")
        return "; ".join(parts)


def fit(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    reset_head: bool,
    source: str,
    resize: str = "vit_jax",
) -> tuple[dict[str, np.ndarray], Report]:
    """Arrays of a file made to fit the shapes of a model, and what became of each.

    Raises:
        SettingError: If arrays are missing, unexpected or mis-shaped; each is named.
    """
    reset = tuple(name for name in HEAD if name in shapes) if reset_head else ()
    ignored = tuple(name for name in PRE_LOGITS if name in arrays and name not in shapes)
    found = {n: a for n, a in arrays.items() if n not in ignored and n not in reset}
    resized = ()
    if POSITION in found and POSITION in shapes and found[POSITION].shape != shapes[POSITION]:
        old, new = found[POSITION], shapes[POSITION]
        if old.ndim == len(new) and old.shape[-1] == new[-1]:
            found[POSITION] = resize_positions(old, new[1], has_cls="cls" in shapes, way=resize)
            resized = (POSITION,)
    wanted = {name: shape for name, shape in shapes.items() if name not in reset}
    require_match(found, wanted, source)
    params = dict(found)
    params.update({name: np.zeros(shapes[name], np.float32) for name in reset})
    used = tuple(name for name in found if name not in resized)
    return params, Report(used, resized, reset, ignored)


def resize_positions(
    positions: np.ndarray, tokens: int, *, has_cls: bool = True, way: str = "vit_jax"
) -> np.ndarray:
    """Position embedding of a square grid, resized to another one.

    Args:
        positions: Shape (1, old * old, features), with [CLS]'s before them if there is one,
            which is kept as it is.
        tokens: new * new, plus 1 with [CLS].
        has_cls: Whether the first position is [CLS]'s.
        way: "vit_jax" (and big_vision): linear interpolation with the corners aligned; "timm":
            with the centres of the pixels aligned, as torch's `interpolate` without
            `align_corners`.

    Returns:
        Shape (1, tokens, features).
    """
    one_of("resize", way, RESIZES)
    first = int(has_cls)
    old, new = math.isqrt(positions.shape[1] - first), math.isqrt(tokens - first)
    if old**2 + first != positions.shape[1] or new**2 + first != tokens:
        raise SettingError(
            f"Cannot resize {positions.shape[1]} positions to {tokens}: not squares."
        )
    grid = positions[0, first:].reshape(old, old, -1)
    if way == "vit_jax":
        from scipy import ndimage  # Imported here because it takes long.

        grid = ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    else:
        rows = _linear_weights(old, new)
        grid = np.einsum("ro,opd,cp->rcd", rows, grid, rows).astype(np.float32)
    return np.concatenate([positions[:, :first], grid.reshape(1, new * new, -1)], axis=1)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """Matrix (new, old) of a linear interpolation with the centres of the pixels aligned."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(at.astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - (at - low))
    np.add.at(weights, (np.arange(new), high), at - low)
    return weights


def require_match(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
    advice: str = "set config.teacher.variant to the checkpoint's.",
) -> None:
    """Raises `SettingError` unless names and shapes are the same; lists what differs."""
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
        lists = "; ".join(f"{kind}: {listed(some)}" for kind, some in problems.items() if some)
        raise SettingError(f"{source} is not a checkpoint of this model ({lists}); {advice}")


def require_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raises `SettingError` if an array holds NaN or infinity; lists which do."""
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise SettingError(
            f"{source} holds NaN or infinity, in {listed(bad)}: the file is damaged, or its "
            "training diverged. Take another checkpoint; set config.teacher.init."
        )


def listed(found: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
