"""Refuses settings that the user gave and that have no effect, with the reason."""

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from remem_jax import checks, data
from remem_jax.data import registry
from remem_jax.data.tfds import named
from remem_jax.methods import METHODS, SCRATCH
from remem_jax.train import student_losses
from remem_jax.weights import catalog

_OF_TEACHERS = (  # Settings of `config.student` that need a teacher.
    *("losses", "temperatures", "weights", "flatten", "hard_labels", "store_outputs"),
)
_OF_TRAINING = (  # Settings of `config.teacher` that only training uses.
    *("steps", "batch_size", "learning_rate", "warmup_steps", "momentum", "weight_decay"),
    *("clip_norm", "dropout", "mixup", "label_smoothing", "mcmi", "rho", "ascent_examples"),
    *("class_balance", "cutmix"),
    *("optimizer", "nesterov", "betas", "epsilon", "layer_decay", "body_rate", "drop_path"),
    *("ema", "ema_warmup"),
    *("accumulate", "lora.*", "adapter.*", "probe_steps", "probe_learning_rate"),
)
# Settings of `config.data` that only teachers and students use.
_OF_TRAINED_MODELS = (
    *("metric", "balanced_sampling", "augment", "color_jitter", "random_erasing"),
    *("unlabelled", "unlabelled_share", "refit"),
)
_OF_MODELS = (
    *("init", "variant", "gelu", "pool", "mean", "std"),
    *("pruned_mlp", "pruned_attention"),
)
Reason = Callable[[ConfigDict], str]


def check(config: ConfigDict, given: Collection[str]) -> None:
    """Raises `SettingError` for the first setting that was given and has no effect.

    In a run without a teacher, settings of teachers only give a warning, so that the same command
    can be used for one method after another.

    Args:
        config: All settings, already checked.
        given: Names of the settings that the user gave, such as "teacher.lora.rank".
    """
    for name in given:
        refuse(name, reason(config, name))
    idle = [f"config.{name}" for name in given if is_idle(config, name)]
    if idle:
        logging.warning(
            "These settings have no effect because no method has a teacher: %s.", ", ".join(idle)
        )


def is_idle(config: ConfigDict, name: str) -> bool:
    """Returns whether a setting belongs to teachers in a run that has none."""
    if "methods" not in config or any(_teachers(config)):
        return False
    group, _, rest = name.partition(".")
    return group in ("teacher", "information", "flatness") or (
        group == "student" and rest in _OF_TEACHERS
    )


def refuse(name: str, reason: str) -> None:
    """Raises `SettingError` if there is a reason why a given setting has no effect."""
    checks.require(
        not reason, f"config.{name} has no effect: {reason}. Leave it out, or change that."
    )


def reason(config: ConfigDict, name: str) -> str:
    """Returns why a setting has no effect given the others; "" if it has one."""
    if is_idle(config, name):
        return ""
    reasons = _OF_ANALYSIS if "analyses" in config else _OF_RUN
    matching = (
        why(config) for pattern, why in {**_OF_DATA, **reasons}.items() if _matches(name, pattern)
    )
    return next(filter(None, matching), "")


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a name matches "PATTERN" or "PATTERN EXCEPTION", but not the exception."""
    included, _, excluded = pattern.partition(" ")
    return fnmatch.fnmatch(name, included) and not fnmatch.fnmatch(name, excluded)


def _teachers(config: ConfigDict) -> Iterator[Mapping[str, Any]]:
    """Yields `config.teacher` as each method with a teacher changes it."""
    for method in config.methods:
        if METHODS[method].has_teacher:
            yield {**config.teacher, **METHODS[method].fixed}


def _fixed(name: str) -> Reason:
    def why(config: ConfigDict) -> str:
        with_teacher = [method for method in config.methods if METHODS[method].has_teacher]
        if any(name not in METHODS[method].fixed for method in with_teacher):
            return ""
        return f"config.methods has {', '.join(with_teacher)} alone, which sets it"

    return why


def _without_ascent(config: ConfigDict) -> str:
    ascends = any(teacher["rho"] for teacher in _teachers(config))
    return "" if ascends else "no method of config.methods has a rho above 0"


def _without_weights(config: ConfigDict) -> str:
    teachers = [config.teacher] if "analyses" in config else _teachers(config)
    weighted = any(
        (teacher["mlp_weight"], teacher["attention_weight"]) != (1, 1) for teacher in teachers
    )
    return "" if weighted else "mlp_weight and attention_weight are 1"


def _tuned_by(group: str) -> Reason:
    def why(config: ConfigDict) -> str:
        tuning = config.teacher.tuning
        return "" if tuning.startswith(group) else f"config.teacher.tuning is {tuning}"

    return why


def _without_name(config: ConfigDict) -> str:
    if "analyses" in config:
        inits = [config.models[name].teacher.init for name in config.model_order]
    else:
        inits = [config.teacher.init]
    published = any(catalog.is_name(init) and init not in catalog.BUNDLED for init in inits)
    reason = f"{', '.join(inits)} is no published name of Google's bucket, which it replaces"
    return "" if published else reason


def _unused_by_losses(setting: str) -> Reason:
    def why(config: ConfigDict) -> str:
        names, hard_labels = config.student.losses, config.student.hard_labels
        if any(setting in student_losses.used(name, hard_labels=hard_labels) for name in names):
            return ""
        return f"config.student.losses is {', '.join(names)}, which does not use it"

    return why


def _unless(setting: str, values: Collection[Any], explanation: str) -> Reason:
    """Builds the reason of a setting that has an effect only for some values of another."""

    def why(config: ConfigDict) -> str:
        value: Any = config
        for part in setting.split("."):
            value = value[part]
        return "" if value in values else f"config.{setting} is {value!r}, {explanation}"

    return why


def _only_head(config: ConfigDict) -> str:
    tuning = config.teacher.tuning
    return f"config.teacher.tuning is {tuning}" if tuning == "linear_probe" else ""


def _unprobed(config: ConfigDict) -> str:
    return "" if config.teacher.probe_steps else "config.teacher.probe_steps is 0"


def _without_cross_entropy(config: ConfigDict) -> str:
    if config.student.hard_labels or any(not METHODS[name].has_teacher for name in config.methods):
        return ""
    return "config.student.hard_labels is False, and no method of config.methods lacks a teacher"


def _optimised(group: str) -> dict[str, Reason]:
    """Returns the reasons of the settings of a group that depend on its optimiser and average."""

    def without_average(config: ConfigDict) -> str:
        return "" if config[group].ema else f"config.{group}.ema is 0"

    def without_momentum(config: ConfigDict) -> str:
        return sgd(config) or ("" if config[group].momentum else f"config.{group}.momentum is 0")

    sgd = _unless(f"{group}.optimizer", ("sgd",), "which does not use it")
    adamw = _unless(f"{group}.optimizer", ("adamw",), "which does not use it")
    return {
        f"{group}.momentum": sgd,
        f"{group}.nesterov": without_momentum,
        f"{group}.betas": adamw,
        f"{group}.epsilon": adamw,
        f"{group}.ema_warmup": without_average,
    }


def _not_random(config: ConfigDict) -> str:
    scratch = SCRATCH in config.methods and not config.student.scratch_learning_rates
    if scratch or not config.student.init:
        return ""
    return "students start from config.student.init, and use pretrained_learning_rates"


def _without_scratch(config: ConfigDict) -> str:
    return "" if SCRATCH in config.methods else f"config.methods has no {SCRATCH}"


def _unused_weights(config: ConfigDict) -> str:
    starts_random = all(METHODS[method].starts_random for method in config.methods)
    if config.student.init and starts_random:
        return f"config.methods has {SCRATCH} alone, which starts from random weights"
    return ""  # Empty, it may replace a preset's weights.


def _not_pretrained(config: ConfigDict) -> str:
    return _unused_weights(config) or (
        "" if config.student.init else "config.student.init is empty"
    )


def _without_distillation(config: ConfigDict) -> str:
    if any(METHODS[name].has_teacher for name in config.get("methods", ())):
        return ""
    return "students learn from unlabelled images through a teacher, and no method has one"


def _without_unlabelled(config: ConfigDict) -> str:
    return "" if config.data.unlabelled else "config.data.unlabelled is empty"


def _unmeasured_flatness(config: ConfigDict) -> str:
    return "" if config.flatness.radius else "config.flatness.radius is 0"


def _not_measured(config: ConfigDict) -> str:
    return "" if config.information.seeds else "config.information.seeds is empty"


def _not_analysed(name: str) -> Reason:
    def why(config: ConfigDict) -> str:
        is_requested = name in config.analyses
        return "" if is_requested else f"config.analyses is {', '.join(config.analyses)}"

    return why


def _without_pictures(config: ConfigDict) -> str:
    steps = config.criticality.visualization.steps
    return "" if steps else "config.criticality.visualization.steps is 0"


def _of_models(name: str) -> Reason:
    def why(config: ConfigDict) -> str:
        teachers = [config.models[model].teacher for model in config.model_order]
        overridden = all(name in teacher for teacher in teachers)
        return f"each of config.models has its own {name}" if overridden else ""

    return why


def _not_trained(config: ConfigDict) -> str:
    del config
    return "an analysis trains no teacher"


def _without_tfds(group: str) -> Reason:
    """Builds the reason of a folder of TFDS without a data set of TFDS."""

    def why(config: ConfigDict) -> str:
        settings = config[group]
        is_tfds = settings.name in registry.RECORDS or named.is_name(settings.name)
        is_used = is_tfds or not settings.dir
        return "" if is_used else f"config.{group}.name is {settings.name}, no data set of TFDS"

    return why


def _without_tfds_name(config: ConfigDict) -> str:
    name = config.data.name
    if named.is_name(name):
        return ""
    return f"config.data.name is {name}, which does not have the form {named.FORM}"


def _without_official_validation(config: ConfigDict) -> str:
    record = registry.RECORDS.get(config.data.name)
    if not config.data.validation:
        return "config.data.validation is 0, which leaves out every validation split"
    return (
        f"{config.data.name} has none: {record.selection}"
        if record and not record.validation
        else ""
    )


def _without_own_images(config: ConfigDict) -> str:
    own = config.data.name in data.CUSTOM
    return (
        "" if own else f"config.data.name is {config.data.name}, which is used as it is published"
    )


def _without_names(config: ConfigDict) -> str:
    name = config.data.name
    if name in ("folder", "list") or (named.is_name(name) and config.data.group_feature):
        return ""
    if named.is_name(name):
        return "config.data.group_feature is empty, whose values it would be searched in"
    return f"config.data.name is {name}, whose images have no names"


_OF_DATA: Mapping[str, Reason] = {
    "data.official_validation": _without_official_validation,
    "data.group_duplicates": _without_own_images,
    "data.group_pattern": _without_names,
    "data.dir": _without_tfds("data"),
    "probe.dir": _without_tfds("probe"),
    **{f"data.{name}": _without_tfds_name for name in named.Choices._fields},
    "data.workers": _unless("data.input", ("auto", "streamed"), "where no image is streamed"),
    "data.resident_gib": _unless("data.input", ("auto", "resident"), "where no image is resident"),
    "data.augment_*": _unless("data.augment", ("rand",), "and only RandAugment uses it"),
    "information.info_nce.* *.measured": _unless(
        "information.info_nce.measured", (True,), "without InfoNCE"
    ),
}
_OF_RUN: Mapping[str, Reason] = {
    "information.* *.seeds": _not_measured,
    "data.root": _unless("data.name", ("list",), "and only a list has relative paths"),
    "data.unlabelled": _without_distillation,
    "data.unlabelled_share": _without_unlabelled,
    "teacher.lora.*": _tuned_by("lora"),
    "teacher.adapter.*": _tuned_by("adapter"),
    **{f"teacher.{name}": _fixed(name) for name in ("rho", "mlp_weight", "attention_weight")},
    "teacher.ascent_examples": _without_ascent,
    "teacher.residual": _without_weights,
    "teacher.mirror": _without_name,
    "teacher.probe_steps": _only_head,
    "teacher.probe_learning_rate": _unprobed,
    "teacher.layer_decay": _only_head,
    "teacher.body_rate": _only_head,
    **_optimised("teacher"),
    **_optimised("student"),
    "student.label_smoothing": _without_cross_entropy,
    "student.init": _unused_weights,
    "student.learning_rates": _not_random,
    "student.scratch_learning_rates": _without_scratch,
    "student.pretrained_learning_rates": _not_pretrained,
    "student.layer_decay": _not_pretrained,
    "student.body_rate": _not_pretrained,
    "flatness.* *.radius": _unmeasured_flatness,
    "student.temperatures": _unused_by_losses("temperature"),
    "student.flatten": _unused_by_losses("flatten"),
    "student.weights": _unused_by_losses("weight"),
    "student.class_balance": _without_cross_entropy,
}
_OF_ANALYSIS: Mapping[str, Reason] = {
    **{f"data.{name}": _not_trained for name in _OF_TRAINED_MODELS},
    **{f"teacher.{name}": _not_trained for name in _OF_TRAINING},
    **{f"teacher.{name}": _of_models(name) for name in _OF_MODELS},
    "teacher.residual": _without_weights,
    "teacher.mirror": _without_name,
    **{
        f"{group}.*": _not_analysed(name)
        for group, name in (
            ("information", "information"),
            ("sensitivity", "information"),
            ("expertness", "expertness"),
            ("criticality", "criticality"),
        )
    },
    "criticality.visualization.* *.steps": _without_pictures,
}
