"""Rejects settings of a study that the user gave but that change no trial and no report."""

from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from remem_jax.methods import METHODS
from remem_jax.settings import unused, values
from remem_jax.study import axes, space

_HALVING_SETTINGS = ("reduction", "rungs", "budget")


def check(config: ConfigDict, given: Collection[str]) -> None:
    """Raises `SettingError` for the first given setting that has no effect.

    Args:
        config: All settings of the study, checked.
        given: Names of the settings that the user gave, such as "base.teacher.lora.rank".
    """
    whole = config.copy_and_resolve_references()
    whole.only = ""  # So that the same command can run one row after another.
    trials = space.trials(whole)
    for name in given:
        group, _, rest = name.partition(".")
        if group == "base":
            affected = [trial for trial in trials if not unused.is_idle(trial.config, rest)]
            reasons = [_reason(config, trial, rest) for trial in affected]
            if not affected:
                reasons = ["no row has a teacher"]
            unused.refuse(name, "; ".join(dict.fromkeys(reasons)) if all(reasons) else "")
        elif group == "search" and rest in _HALVING_SETTINGS and config.search.kind == "grid":
            unused.refuse(name, "config.search.kind is grid")
        elif name.startswith("search.near."):
            axis = axes.name_of(name.removeprefix("search.near."))
            is_searched = axis in axes.searched(config)
            unused.refuse(name, "" if is_searched else f"config.grid.{axis} has no values")
        elif name == "margin":
            unused.refuse(name, "" if config.claims else "config.claims is empty")
        elif group == "grid":
            unused.refuse(name, _not_varied(config, trials, axes.name_of(rest)))


def _not_varied(config: ConfigDict, trials: Sequence[space.Trial], axis: str) -> str:
    """Returns why no trial varies an axis; "" if one does, or if the axis has no values."""
    if axis not in axes.searched(config) or any(axis in trial.point for trial in trials):
        return ""
    if axis in config.base.teacher:
        return "the method or a setting of each row or column fixes it"
    reasons = [
        _reason(config, trial, axis) or axes.why_idle(trial.config, axis) for trial in trials
    ]
    return "; ".join(dict.fromkeys(reasons))


def _reason(config: ConfigDict, trial: space.Trial, name: str) -> str:
    """Returns why a setting of `config.base` has no effect in a trial; "" if it has one."""
    if name in axes.SET_BY_STUDY:
        return axes.SET_BY_STUDY[name]
    for where, key in (("columns", trial.column), ("rows", trial.row)):
        if name in dict(values.leaves(config[where][key].changes)):
            return f"each of config.{where} sets it"
    group, _, setting = name.partition(".")
    fixed = METHODS[config.rows[trial.row].method].fixed
    if name in {axes.setting(config, axis) for axis in trial.point} or (
        group == "teacher" and setting in fixed
    ):
        return "config.grid, or the method of a row, sets it"
    return unused.reason(trial.config, name)
