"""The axes of a study's grid: the settings of its runs that are searched, and their values.

An axis is named like its setting in `config.base`, such as "student.weight_decay". Settings of
`config.teacher` that stand in `config.grid` itself, as those of the paper's Table 6, have no group.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from remem_jax import checks
from remem_jax.methods import METHODS
from remem_jax.settings import plain, unused, values
from remem_jax.storage import identity

TABLE_6 = ("learning_rate", "rho", "mlp_weight", "attention_weight")
SET_BY_STUDY = {  # Settings that the study sets for each trial, and why.
    "seed": "config.seeds has those of a study",
    "methods": "each of config.rows has its own",
}
_SHARED = "all trials of a study share it, and config.base has its value"
_REPEATED = "seeds are repeated, not selected, and config.base has them"
_COMPARED = (
    "trials are selected by their accuracy on validation, and this setting changes what that is; "
    "each value can have a column of config.columns"
)
_NEVER = {
    **SET_BY_STUDY,
    **dict.fromkeys(("workflow", "choose_on_test", "data.refit"), _SHARED),
    **dict.fromkeys(("student.seeds", "information.seeds"), _REPEATED),
    **{
        f"data.{name}": _COMPARED
        for name in (
            *("name", "path", "root", "dir", "metric", "validation", "official_validation"),
            *("group_feature", "group_pattern", "group_duplicates"),
            *("train_split", "validation_split", "test_split", "image_feature", "label_feature"),
        )
    },
}


def check(config: ConfigDict) -> None:
    """Raises `SettingError` for the first axis that no trial could have.

    Whether a run accepts the values is not checked here.
    """
    places: dict[str, str] = {}
    for place, tried in _places(config):
        where, name = f"config.grid.{place}", setting(config, place)
        default = _value_in_base(config, where, name)
        checks.require(
            isinstance(tried, tuple | list),
            f"{where} must be a tuple of the values to search, got {tried!r}.",
        )
        if not tried:
            continue
        reason = _why_never(config, name)
        checks.require(
            not reason, f"{where} cannot be an axis of the grid: {reason}. Leave it out."
        )
        values.check_axis(where, default, tried)
        first = places.setdefault(name, where)
        checks.require(
            first == where, f"{first} and {where} are the same setting: set one of them to ()."
        )
    for name, tried in searched(config).items():
        if name in config.search.near:
            checks.one_of(f"config.search.near.{name}", config.search.near[name], tried)


def searched(config: ConfigDict) -> dict[str, tuple[Any, ...]]:
    """Returns the values of each axis, by name; an axis without values is not searched.

    Whole numbers for settings that are real numbers become real numbers, so that a trial has one
    key however they are written; except those without a group, whose keys earlier versions made.
    """
    axes = {}
    for place, tried in _places(config):
        if not tried:
            continue
        default = values.at(config.base, setting(config, place))
        is_real = "." in place and isinstance(default, float)
        axes[name_of(place)] = tuple(
            float(value) if is_real and not isinstance(value, str) else _frozen(value)
            for value in tried
        )
    return axes


def name_of(place: str) -> str:
    """Returns the name of an axis, given its place in `config.grid`, such as "teacher.rho"."""
    group, _, name = place.partition(".")
    return name if group == "teacher" and name in TABLE_6 else place


def setting(config: ConfigDict, axis: str) -> str:
    """Returns the name in `config.base` of the setting that an axis varies."""
    return f"teacher.{axis}" if axis in config.base.teacher else axis


def changed(config: ConfigDict, row: str, column: str) -> set[str]:
    """Returns the names of the settings that a row or a column of the table changes."""
    changes = (config.rows[row].changes, config.columns[column].changes)
    return {name for name, _ in itertools.chain(*map(values.leaves, changes))}


def of_cell(config: ConfigDict, row: str, column: str) -> dict[str, tuple[Any, ...]]:
    """Returns the axes that may vary in a row and a column, with their values.

    These are axes that neither the row nor the column changes; of those without a group, only in
    rows whose method has a teacher and does not fix them.
    """
    method, fixed_here = METHODS[config.rows[row].method], changed(config, row, column)
    return {
        name: tried
        for name, tried in searched(config).items()
        if setting(config, name) not in fixed_here
        and (name not in config.base.teacher or (method.has_teacher and name not in method.fixed))
    }


def effective(settings: ConfigDict, point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a grid point that has an effect in a run.

    Axes without a group are those of `config.teacher`, which `of_cell` has selected by the method.

    Args:
        settings: Settings that all trials of the cell share.
        point: The values of axes from `of_cell`, by name.
    """
    run = with_point(settings, point)
    return {
        name: value
        for name, value in point.items()
        if name in run.teacher or not why_idle(run, name)
    }


def why_idle(run: ConfigDict, name: str) -> str:
    """Returns why a setting has no effect in a run of one method; "" if it has one."""
    (method,) = run.methods
    if unused.is_idle(run, name):
        return f"the method {method} has no teacher"
    if name == "student.init" and METHODS[method].starts_random:
        return f"the method {method} starts from random weights"
    return unused.reason(run, name)


def with_point(settings: ConfigDict, point: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a cell's settings with the values of a grid point."""
    run = settings.copy_and_resolve_references()
    (method,) = run.methods
    of_teacher = {name: value for name, value in point.items() if name in run.teacher}
    # Otherwise, settings that the method fixes would be listed as deviations from the paper.
    _update(run.teacher, {**of_teacher, **METHODS[method].fixed})
    for name in point.keys() - of_teacher.keys():
        group, _, last = name.rpartition(".")
        _update(values.at(run, group) if group else run, {last: point[name]})
    return run


def _update(settings: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Updates settings without converting the new values to the types of the old ones."""
    if all(type(settings.get(name)) is type(value) for name, value in changes.items()):
        settings.update(changes)
    else:
        with settings.ignore_type():
            settings.update(changes)


def described(point: Mapping[str, Any]) -> list[str]:
    """Describes a grid point, axis by axis, such as "learning rate 0.05"."""
    return [
        f"{name if '.' in name else name.replace('_', ' ')} {_text(value)}"
        for name, value in point.items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _places(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields the axes by their places in `config.grid`, those without a group first."""
    yield from sorted(values.leaves(config.grid), key=lambda axis: "." in axis[0])


def _value_in_base(config: ConfigDict, where: str, name: str) -> Any:
    """Returns the value in `config.base` of the setting of an axis; an unknown one is an error."""
    *groups, last = name.split(".")
    base = config.base
    known = _names(base) if groups else [*_names(base), *_names(base.teacher)]
    for group in groups:
        checks.one_of(where, group, [key for key in base if key not in _names(base)])
        base, known = base[group], _names(base[group])
    checks.one_of(where, last, known)
    return base[last]


def _names(settings: ConfigDict) -> list[str]:
    """Returns the names of settings, without those of groups."""
    return [name for name in settings if not isinstance(settings[name], ConfigDict)]


def _why_never(config: ConfigDict, name: str) -> str:
    """Returns why no study can search a setting; "" if one can."""
    if name in _NEVER:
        return _NEVER[name]
    deciding = ConfigDict(identity.described(plain(config.base)))
    decides = name in dict(values.leaves(deciding)) and name != "teacher.mirror"
    return "" if decides else "it changes no result"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, tuple | list) else value
