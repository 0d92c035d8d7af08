"""Errors for users: each names the setting, what was expected, what came, and what to do."""

import itertools
import math
import os
import pathlib
import re
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from remem_jax import redaction

# Of a path that was made of a URL too, which has lost a slash. One letter is a drive or a folder.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]+):/+")


class SettingError(ValueError):
    """Something the user gave cannot be used; the message is one line, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redaction.without_secrets(message))


def require(condition: bool, message: str) -> None:
    """Raises `SettingError(message)` unless the condition holds."""
    if not condition:
        raise SettingError(message)


def at_least(name: str, value: float, low: float) -> None:
    """Raises unless `value >= low`, and finite."""
    require(low <= value < math.inf, f"{name} must be at least {low:g}, got {value}.")


def above(name: str, value: float, low: float) -> None:
    """Raises unless `value > low`, and finite."""
    require(low < value < math.inf, f"{name} must be above {low:g}, got {value}.")


def inside(name: str, value: float, low: float, high: float) -> None:
    """Raises unless `low < value < high`."""
    require(low < value < high, f"{name} must lie between {low:g} and {high:g}, got {value}.")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises unless `low <= value <= high`."""
    require(low <= value <= high, f"{name} must be from {low:g} to {high:g}, got {value}.")


def one_of(name: str, value: Any, known: Collection[Any]) -> None:
    """Raises unless the value is known; lists what is."""
    is_known = isinstance(value, Hashable) and value in known
    require(is_known, f"{name} must be one of {', '.join(map(str, known))}; got {value!r}.")


def seed(name: str, value: Any, *, bits: int = 32) -> None:
    """Raises unless a seed is a whole number of so many bits.

    JAX takes the lower 32 bits alone: two seeds beyond them may be one. A compiled function that
    is given a seed as a Python int takes 31.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(
        whole and 0 <= value < 2**bits,
        f"{name} must be a whole number from 0 to {2**bits - 1:,}, got {value}.",
    )


def numbers(name: str, values: Sequence[Any], *, whole: bool = False) -> None:
    """Raises unless all values are finite numbers; whole ones, where that is asked for."""
    kinds = int if whole else (int, float)
    fits = all(isinstance(one, kinds) and not isinstance(one, bool) for one in values)
    require(
        fits and all(math.isfinite(one) for one in values),
        f"{name} must be {'whole' if whole else 'finite'} numbers, got {tuple(values)}.",
    )


def distinct(name: str, values: Sequence[Any]) -> None:
    """Raises if there are two equal values."""
    require(
        all(one not in values[:i] for i, one in enumerate(values)),
        f"{name} repeats a value: {tuple(values)}.",
    )


def increasing(name: str, values: Sequence[float]) -> None:
    """Raises unless there are values, each above the one before."""
    require(len(values) > 0, f"{name} must hold at least one value.")
    rising = all(a < b for a, b in itertools.pairwise(values))
    require(rising, f"{name} must increase, got {tuple(values)}.")


def local_path(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """The path that a user gave, with `~` expanded.

    Args:
        name: What was set, for messages: `--workdir`, `config.data.path`, `REMEM_CACHE`.
        value: The path; may be of a `pathlib.Path` that was made of a URL.

    Raises:
        SettingError: If it is the URL of something remote, or of a home folder that is not known.
    """
    text = os.fspath(value)
    remote = _SCHEME.match(text)
    if remote:
        raise SettingError(
            f"{remote[1]}://{text[remote.end() :]} is no local folder or file: mount it, or copy "
            f"it to a disk of this machine; set {name}."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise SettingError(
            f"The home folder in {text} is not known here; set {name} to a whole path, or set HOME."
        ) from None
