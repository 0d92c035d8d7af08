"""Which settings of a run have an effect, given the others."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from remem_jax.methods import METHODS, SCRATCH

# A setting on the left has an effect only in methods that leave a setting of config.teacher on the
# right free.
_FREE_BY: Mapping[str, tuple[str, ...]] = {
    "teacher.rho": ("rho",),
    "teacher.ascent_examples": ("rho",),
    "teacher.mlp_weight": ("mlp_weight",),
    "teacher.attention_weight": ("attention_weight",),
    "teacher.residual": ("mlp_weight", "attention_weight"),
}
# Whether a setting of this name has no effect, given the settings of its group.
_UNUSED: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "momentum": lambda settings: settings.get("optimizer") == "adamw",
    "nesterov": lambda settings: (
        settings.get("optimizer") == "adamw" or settings.get("momentum") == 0
    ),
    "betas": lambda settings: settings.get("optimizer") == "sgd",
    "epsilon": lambda settings: settings.get("optimizer") == "sgd",
    "ema_warmup": lambda settings: not settings.get("ema"),
}
# Settings of other groups that have an effect only in methods with a teacher.
_THROUGH_TEACHERS = ("data.unlabelled", "data.unlabelled_share")
_OF_PRETRAINED = ("pretrained_learning_rates", "layer_decay", "body_rate")


def has_effect(name: str, config: Mapping[str, Any]) -> bool:
    """Returns whether a setting has an effect in a run."""
    group, _, rest = name.partition(".")
    methods = config.get("methods", ("remem",))
    settings = config.get(group, {})
    if group == "information":
        return bool(settings.get("seeds"))
    if rest in _UNUSED and _UNUSED[rest](settings):
        return False
    if group == "student":
        return _has_effect_on_students(rest, methods, settings)
    if group != "teacher" and name not in _THROUGH_TEACHERS:
        return True
    tuning = settings.get("tuning", "full")
    if rest.partition(".")[0] in ("lora", "adapter") and "." in rest:
        return tuning.startswith(rest.partition(".")[0])
    return any(has_effect_in(method, name) for method in methods)


def _has_effect_on_students(
    name: str, methods: Collection[str], settings: Mapping[str, Any]
) -> bool:
    """Returns whether a setting of `config.student` has an effect, given the methods of a run."""
    if name in _OF_PRETRAINED:
        return bool(settings.get("init"))
    return name != "scratch_learning_rates" or SCRATCH in methods


def has_effect_in(method: str, name: str) -> bool:
    """Returns whether a setting that needs a teacher has an effect in a method."""
    if method not in METHODS:
        return True
    record = METHODS[method]
    settings = _FREE_BY.get(name)
    return record.has_teacher and (
        settings is None or any(setting not in record.fixed for setting in settings)
    )
