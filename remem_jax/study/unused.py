"""Rejects settings of a study that the user gave but that change none of its trials."""

from collections.abc import Collection

from ml_collections import ConfigDict

from remem_jax.methods import METHODS
from remem_jax.settings import unused, values
from remem_jax.study import space

_SET_BY_STUDY = {  # Settings that the study sets for each trial, and why.
    "seed": "config.seeds has those of a study",
    "methods": "each of config.rows has its own",
}
_HALVING_SETTINGS = ("reduction", "rungs", "budget")


def check(config: ConfigDict, given: Collection[str]) -> None:
    """Raises `SettingError` for the first given setting that has no effect in any trial.

    Args:
        config: All settings of the study, checked.
        given: Names of the settings that the user gave, such as "base.teacher.lora.rank".
    """
    trials = space.trials(config)
    for name in given:
        group, _, rest = name.partition(".")
        if group == "base":
            affected = [trial for trial in trials if not unused.is_idle(trial.config, rest)]
            reasons = [_reason(config, trial, rest) for trial in affected]
            unused.refuse(name, "; ".join(dict.fromkeys(reasons)) if all(reasons) else "")
        elif group == "search" and rest in _HALVING_SETTINGS and config.search.kind == "grid":
            unused.refuse(name, "config.search.kind is grid")
        elif group == "grid" and not any(rest in trial.point for trial in trials):
            unused.refuse(name, "the method of no row leaves it free")


def _reason(config: ConfigDict, trial: space.Trial, name: str) -> str:
    """Returns why a setting of `config.base` has no effect in a trial; "" if it has one."""
    if name in _SET_BY_STUDY:
        return _SET_BY_STUDY[name]
    for where, key in (("columns", trial.column), ("rows", trial.row)):
        if name in dict(values.leaves(config[where][key].changes)):
            return f"each of config.{where} sets it"
    group, _, setting = name.partition(".")
    if group == "teacher" and (
        setting in trial.point or setting in METHODS[config.rows[trial.row].method].fixed
    ):
        return "config.grid, or the method of a row, sets it"
    return unused.reason(trial.config, name)
