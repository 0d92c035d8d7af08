"""The identity of a result: settings, images, weights and code, without paths.

Runs, studies, the cache and exports compare it to decide whether two things are the same. Moved
files are the same; files changed in place are not.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from remem_jax.storage import results

# Increased when the same files give other pixels, or when other files can be read.
DECODING = 2
# Increased when the same settings, images and weights give other results. 2: named random streams.
TRAINING = 2

# Settings that do not change results.
_FREE = (
    "log_every",
    "save_every",
    "differs",
    "profile",
    "plan_only",
    "fsdp",
    "retries",
    "keep_checkpoints",
)
_FREE_OF = {  # The same, by group: speed, memory and copies.
    "data": ("cache", "threads", "workers"),
    # Except for rounding, and which units are dropped.
    "teacher": ("rematerialise", "accumulate"),
    "train": ("rematerialise", "accumulate"),
    "information": ("rematerialise",),
    "student": ("group", "store_outputs"),
}
# Paths of images and weights, which are identified by their digests.
_PATHS = {"data": ("path", "dir"), "teacher": ("init", "mirror"), "probe": ("path", "dir")}
# Settings that earlier versions lack, by group, with the value at which a run is what it was
# before. At this value they are not part of an identity, so that unfinished runs and studies go on.
_NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "data": {
        "flip": "auto",
        "metric": "auto",
        "balanced_sampling": 0.0,
        "augment": "none",
        "augment_operations": 2,
        "augment_magnitude": 9,
        "color_jitter": 0.0,
        "random_erasing": 0.0,
    },
    "teacher": {
        "cutmix": 0.0,
        "class_balance": 0.0,
    },
    "student": {
        "cutmix": 0.0,
        "class_balance": 0.0,
    },
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
    "heartbeat_seconds",
    "grace_seconds",
    "attempts",
    "keep_weights",
)


class Identity(NamedTuple):
    """Everything that determines a result.

    Attributes:
        settings: Settings that determine it, nested, without paths; JSON values.
        inputs: Digests of the inputs: "data" (images, labels and splits), "classes" (their names),
            and the weights as "teacher", or "models" by name. "input" is resident or streamed.
        code: `TRAINING` of the code that made it.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    code: int = TRAINING

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return results.fingerprint(self._asdict())


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
    return without_neutral(_without(described(plain), _PATHS))


def deciding_of_study(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a study that must not change while it grows.

    Args:
        plain: All settings of a study, nested; JSON values.
    """
    kept = deciding({name: value for name, value in plain.items() if name not in _GROWING})
    base = kept.get("base", {})
    return kept | {"base": {name: value for name, value in base.items() if name not in _FREE}}


def _without(tree: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Returns a tree without these names of these groups, at any depth."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            dropped = set(names.get(name, ()))
            value = _without({k: v for k, v in value.items() if k not in dropped}, names)
        kept[name] = value
    return kept


def without_neutral(tree: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Returns settings without those of `_NEUTRAL` that have their neutral value.

    Args:
        tree: Settings, nested; JSON values.
        group: Name of the group that they are.
    """
    neutral = _NEUTRAL.get(group, {})
    return {
        name: without_neutral(value, name) if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if name not in neutral or not _same(value, neutral[name])
    }


def neutral(group: str) -> dict[str, Any]:
    """Returns the neutral values of the settings of a group that earlier versions lack."""
    return dict(_NEUTRAL.get(group, {}))


def _same(value: Any, neutral: Any) -> bool:
    """Returns whether two values are equal; JSON has lists in place of tuples."""
    if isinstance(neutral, tuple):
        return isinstance(value, list | tuple) and tuple(value) == neutral
    return value == neutral


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
