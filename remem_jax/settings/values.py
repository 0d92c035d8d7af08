"""Checks that all settings share: finite numbers, seeds, tuples without repeated values.

The command line converts a value to the type of its default, but not the elements of a tuple.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from remem_jax import checks

# Types of the elements of tuples, by the last part of their names.
_WHOLE = ("steps", "layers", "examples", "seeds", "null_seeds")
_REALS = (
    *("crop_area", "betas", "temperatures", "weights", "second_betas"),
    *("learning_rates", "scratch_learning_rates", "pretrained_learning_rates"),
    *("mean", "std"),
)
_TEXTS = (
    *("methods", "losses", "targets", "analyses", "splits", "differs"),
    *("model_order", "row_order", "column_order"),
)
_FLAGS = ("align_corners",)
_SEEDS = ("seeds", "null_seeds")
_PAIRS = ("crop_area", "betas")
_MAY_REPEAT = (*_PAIRS, "mean", "std", "differs", "examples")


def check(config: ConfigDict) -> None:
    """Raises `SettingError` for the first setting with an invalid value.

    The values of a study's axes have the types of other settings: see `check_axis`.
    """
    others = ((name, value) for name, value in leaves(config) if not name.startswith("grid."))
    for name, value in others:
        last = name.rpartition(".")[2]
        if isinstance(value, tuple | list):
            _check_tuple(f"config.{name}", last, value)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise checks.SettingError(f"config.{name} must be a finite number, got {value}.")
        elif last == "seed":
            checks.seed(f"config.{name}", value)
    if "student" in config:  # The seed is an argument of the compiled step.
        for seed in config.student.seeds:
            checks.seed("config.student.seeds", seed, bits=31)


_WORDS: Mapping[str, tuple[str, ...]] = {"flatten": ("calibrated",)}  # Beside numbers.


def check_axis(name: str, default: Any, values: tuple[Any, ...] | list[Any]) -> None:
    """Raises `SettingError` unless all values have the type of the setting that they are for.

    Args:
        name: Name of the axis, such as "config.grid.student.temperatures".
        default: A value of the setting.
        values: The values to search.
    """
    if isinstance(default, tuple | list):
        for value in values:
            checks.require(
                isinstance(value, tuple | list),
                f"{name} must hold tuples, since its setting is one: "
                f"(({values[0]!r},),) is one value; got {tuple(values)}.",
            )
            _check_tuple(name, name.rpartition(".")[2], value)
        checks.distinct(name, [tuple(value) for value in values])
        return
    words = _WORDS.get(name.rpartition(".")[2], ())
    if words:
        checks.numbers(name, [value for value in values if value not in words])
    elif isinstance(default, bool):
        _check_flags(name, values)
    elif isinstance(default, str):
        _check_texts(name, values)
    else:
        checks.numbers(name, values, whole=isinstance(default, int))
    checks.distinct(name, values)


def at(config: ConfigDict, name: str) -> Any:
    """Returns the value of a setting, given its name, such as "teacher.lora.rank"."""
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all settings with their names, such as "teacher.lora.rank"."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_tuple(name: str, last: str, values: tuple[Any, ...] | list[Any]) -> None:
    if last in _SEEDS:
        for value in values:
            checks.seed(name, value)
    elif last in _WHOLE:
        checks.numbers(name, values, whole=True)
    elif last in _REALS:
        checks.numbers(name, values)
    elif last in _TEXTS:
        _check_texts(name, values)
    elif last in _FLAGS:
        _check_flags(name, values)
    checks.require(
        last not in _PAIRS or len(values) == 2, f"{name} must be two numbers, got {tuple(values)}."
    )
    if last not in _MAY_REPEAT:
        checks.distinct(name, values)


def _check_texts(name: str, values: tuple[Any, ...] | list[Any]) -> None:
    checks.require(
        all(isinstance(value, str) for value in values),
        f"{name} must be texts, got {tuple(values)}.",
    )


def _check_flags(name: str, values: tuple[Any, ...] | list[Any]) -> None:
    checks.require(
        all(isinstance(value, bool) for value in values),
        f"{name} must be True or False, got {tuple(values)}.",
    )
