"""Errors for users: each states the setting, what was expected, what was given, what to do."""

import itertools
import math
import os
import pathlib
import re
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from remem_jax import redaction

# The scheme of a URL; `pathlib.Path` leaves one slash. A single letter is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]+):/+")


def printable(text: str) -> str:
    """Returns a text with its unprintable characters escaped, such as those that end a line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class SettingError(ValueError):
    """The user gave something that cannot be used; the message is one line, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(redaction.without_secrets(message)))


def require(condition: bool, message: str) -> None:
    """Raises `SettingError(message)` unless the condition holds."""
    if not condition:
        raise SettingError(message)


def at_least(name: str, value: float, low: float) -> None:
    """Raises unless the value is finite and at least `low`."""
    require(low <= value < math.inf, f"{name} must be at least {low:g}, got {value}.")


def above(name: str, value: float, low: float) -> None:
    """Raises unless the value is finite and above `low`."""
    require(low < value < math.inf, f"{name} must be above {low:g}, got {value}.")


def inside(name: str, value: float, low: float, high: float) -> None:
    """Raises unless `low < value < high`."""
    require(low < value < high, f"{name} must lie between {low:g} and {high:g}, got {value}.")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises unless `low <= value <= high`."""
    require(low <= value <= high, f"{name} must be from {low:g} to {high:g}, got {value}.")


def one_of(name: str, value: Any, known: Collection[Any]) -> None:
    """Raises unless the value is one of the known ones, which the message lists."""
    is_known = isinstance(value, Hashable) and value in known
    require(is_known, f"{name} must be one of {', '.join(map(str, known))}; got {value!r}.")


def seed(name: str, value: Any, *, bits: int = 32) -> None:
    """Raises unless a seed is a non-negative integer of at most `bits` bits.

    JAX uses only the lower 32 bits, so larger seeds could give the same numbers. A seed that is
    passed to a compiled function as a Python int may have at most 31 bits.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(
        whole and 0 <= value < 2**bits,
        f"{name} must be a whole number from 0 to {2**bits - 1:,}, got {value}.",
    )


def numbers(name: str, values: Sequence[Any], *, whole: bool = False) -> None:
    """Raises unless all values are finite numbers, or integers if `whole`."""
    types = int if whole else (int, float)
    valid = all(isinstance(value, types) and not isinstance(value, bool) for value in values)
    require(
        valid and all(math.isfinite(value) for value in values),
        f"{name} must be {'whole' if whole else 'finite'} numbers, got {tuple(values)}.",
    )


def distinct(name: str, values: Sequence[Any]) -> None:
    """Raises if two values are equal."""
    require(
        all(value not in values[:i] for i, value in enumerate(values)),
        f"{name} repeats a value: {tuple(values)}.",
    )


def increasing(name: str, values: Sequence[float]) -> None:
    """Raises unless there are values, and each is larger than the one before."""
    require(len(values) > 0, f"{name} must hold at least one value.")
    rising = all(a < b for a, b in itertools.pairwise(values))
    require(rising, f"{name} must increase, got {tuple(values)}.")


def local_path(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """Expands `~` in a path that the user gave.

    Args:
        name: Name of the setting, for messages: `--workdir`, `config.data.path`, `REMEM_CACHE`.
        value: The path. It may be a `pathlib.Path` that was made from a URL.

    Raises:
        SettingError: If it is a remote URL, or in a home folder that is unknown.
    """
    text = os.fspath(value)
    remote = _SCHEME.match(text)
    if remote:
        raise SettingError(
            f"{remote[1]}://{text[remote.end() :]} is not a local folder or file: mount it, or "
            f"copy it to a disk of this machine, and set {name} to the local path."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise SettingError(
            f"The home folder in {text} is unknown; set {name} to an absolute path, or set HOME."
        ) from None
