"""The identity of a result: settings, images, weights and code, without paths.

Runs, studies, the cache and exports compare it to decide whether two things are the same. Moved
files are the same; files changed in place are not.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from remem_jax.methods import METHODS
from remem_jax.storage import results

# Increased when the same files give other pixels, or when other files can be read.
DECODING = 2
# Increased when the same settings, images and weights give other results. 2: named random streams.
TRAINING = 2
# The same for results with some of the students' losses, by name: the version of training since
# when they are what they are now. 3: the epsilon and the weights of the authors' code.
TRAINING_OF_LOSSES: Mapping[str, int] = {"kd_standardised": 3}

# Settings that do not change results.
_FREE = (
    "log_every",
    "save_every",
    "differs",
    "track",
    "profile",
    "plan_only",
    "fsdp",
    "retries",
    "keep_checkpoints",
)
_FREE_OF = {  # The same, by group: speed, memory and copies.
    "data": ("cache", "threads", "workers", "refit"),  # A refit adds to the results.
    # Except for rounding, and which units are dropped.
    "teacher": ("rematerialise", "accumulate"),
    "train": ("rematerialise", "accumulate"),
    "information": ("rematerialise",),
    "student": ("group", "store_outputs"),
    "flatness": ("batch_size",),
}
_OPTIMISATION: Mapping[str, Any] = {
    **{"optimizer": "sgd", "betas": [0.9, 0.999], "epsilon": 1e-8},
    **{"layer_decay": 1.0, "body_rate": 1.0, "drop_path": 0.0, "ema": 0.0, "ema_warmup": False},
}
_TRAINING_IMAGES: Mapping[str, Any] = {
    **{"flip": "auto", "metric": "auto", "balanced_sampling": 0.0, "evaluation_crop": 0.0},
    **{"augment": "none", "augment_operations": 2, "augment_magnitude": 9},
    **{"color_jitter": 0.0, "random_erasing": 0.0, "unlabelled": ""},
}
_HELD_OUT: Mapping[str, Any] = {
    **{"official_validation": True, "group_duplicates": True},
    **{"group_pattern": "", "group_feature": ""},
}
_TFDS: Mapping[str, Any] = {
    **{"train_split": "", "validation_split": "", "test_split": ""},
    **{"image_feature": "", "label_feature": ""},
}
_LABELS: Mapping[str, Any] = {"cutmix": 0.0, "class_balance": 0.0}
# Settings that later versions added, by group, with the value that leaves results unchanged. A
# setting with this value is not part of an identity, so that runs and studies that an earlier
# version began go on.
ADDED: Mapping[str, Mapping[str, Any]] = {
    "data": {**_TRAINING_IMAGES, **_TFDS, **_HELD_OUT, "root": ""},
    "teacher": {
        **_OPTIMISATION,
        **_LABELS,
        **{"nesterov": False, "pool": "", "mean": [], "std": [], "probe_steps": 0},
    },
    "student": {
        **{"init": "", "mean": [], "std": [], "scratch_learning_rates": []},
        **{"clip_norm": 0.0, "dropout": 0.0, "label_smoothing": 0.0},
        **_OPTIMISATION,
        **_LABELS,
        "nesterov": True,
    },
    "flatness": {"radius": 0.0},
}
# Values of these settings that give the images of earlier versions, if they differ.
EARLIER: Mapping[str, Mapping[str, Any]] = {
    "data": {"official_validation": False, "group_duplicates": False}
}
# Settings that have no effect if another one of the same group has its value of `ADDED`.
_WITH: Mapping[str, Mapping[str, str]] = {
    "data": {"unlabelled_share": "unlabelled"},
    "student": {"pretrained_learning_rates": "init"},
    "teacher": {"probe_learning_rate": "probe_steps"},
    "flatness": {"examples": "radius"},
}
# Paths of images and weights, and what is held out, which are identified by their digests.
_PATHS = {
    "data": ("path", "dir", "root", "unlabelled", *_HELD_OUT),
    "teacher": ("init", "mirror"),
    "student": ("init",),
    "probe": ("path", "dir"),
}
# Settings of a study that may change or grow between its commands.
_GROWING = (
    "grid",
    "search",
    "seeds",
    "only",
    "title",
    "row_order",
    "column_order",
    "storage",
    "artifacts",
    "heartbeat_seconds",
    "grace_seconds",
    "attempts",
    "keep_weights",
    *("baseline", "claims", "margin"),
)
_SHOWN = ("title", "group")  # Settings of rows and columns that only reports show.


class Identity(NamedTuple):
    """Everything that determines a result.

    Attributes:
        settings: Settings that determine it, nested, without paths; JSON values.
        inputs: Digests of the inputs: "data" (images, labels and splits), "classes" (their names),
            "unlabelled" (images that students learn from through a teacher, if there are any), and
            the weights as "teacher" and "student", or "models" by name. "input" is resident or
            streamed.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]

    @property
    def code(self) -> int:
        """Version of training of the code that made it; see `code_of`."""
        return code_of(self.settings)

    @property
    def key(self) -> str:
        """Hash of the identity."""
        identified = {"settings": self.settings, "inputs": self.inputs, "code": self.code}
        return results.fingerprint(identified)


def code_of(settings: Mapping[str, Any]) -> int:
    """Returns the version of training of the results of a run's settings.

    It is `TRAINING`, or more if students with a teacher have a loss that has changed since.
    """
    if not any(METHODS[method].has_teacher for method in settings.get("methods", ())):
        return TRAINING
    losses = settings.get("student", {}).get("losses", ())
    return max([TRAINING, *(TRAINING_OF_LOSSES.get(name, 0) for name in losses)])


def described(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a run, including paths, that may change its result.

    Args:
        plain: All settings of a run, nested; JSON values.
    """
    kept = {name: value for name, value in plain.items() if name not in _FREE}
    return _without(kept, _FREE_OF)


def deciding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that determine a run's result, for `Identity.settings`.

    Args:
        plain: All settings of a run, nested; JSON values.
    """
    return _without(without_additions(described(plain)), _PATHS)


def deciding_of_study(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a study that must not change while it grows.

    Args:
        plain: All settings of a study, nested; JSON values.
    """
    kept = deciding({name: value for name, value in plain.items() if name not in _GROWING})
    base = kept.get("base", {})
    kept["base"] = {name: value for name, value in base.items() if name not in _FREE}
    for axis in ("rows", "columns"):
        named = kept.get(axis, {})
        kept[axis] = _without(named, dict.fromkeys(named, _SHOWN))
    return kept


def without_additions(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the settings of `ADDED` that leave results unchanged, and those that need them.

    Initial weights of students are identified by their digest; "init" states only that there are
    some.
    """
    kept = dict(plain)
    for group, added in ADDED.items():
        if not isinstance(plain.get(group), Mapping):
            continue
        settings = dict(plain[group])
        off = {name for name, value in added.items() if settings.get(name, value) == value}
        off |= {name for name, needed in _WITH.get(group, {}).items() if needed in off}
        kept[group] = {name: value for name, value in settings.items() if name not in off}
        if not kept[group]:  # Earlier versions lack the whole group.
            del kept[group]
    if kept.get("student", {}).get("init"):
        kept["student_init"] = True
    return kept


def _without(tree: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Returns a tree without these names of these groups, at any depth."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            dropped = set(names.get(name, ()))
            value = _without({k: v for k, v in value.items() if k not in dropped}, names)
        kept[name] = value
    return kept


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    counts: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """Returns differences of two trees of JSON values, as phrases such as "seed was 0, is 1".

    Args:
        before: Earlier tree.
        now: Current tree.
        counts: Whether a name that only one tree has, such as "teacher.rho", is a difference.
    """
    old, new = _flat(before), _flat(now)
    return [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and ((name in old and name in new) or counts(name))
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
