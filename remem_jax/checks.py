"""Errors for users: each names the setting, what was expected, what came, and what to do."""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any


class SettingError(ValueError):
    """Something the user gave cannot be used; the message is one line, for the user."""


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
    require(value in known, f"{name} must be one of {', '.join(map(str, known))}; got {value!r}.")


def increasing(name: str, values: Sequence[float]) -> None:
    """Raises unless there are values, each above the one before."""
    require(len(values) > 0, f"{name} must hold at least one value.")
    rising = all(a < b for a, b in itertools.pairwise(values))
    require(rising, f"{name} must increase, got {tuple(values)}.")
