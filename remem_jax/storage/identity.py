"""What a result is a result of: settings, images, weights and code, wherever they lie.

Runs, studies, the cache of decoded images and exports tell by it whether two things are the same.
Paths are no part of it: what was moved is the same, what was changed in place is not.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from remem_jax.storage import results

# Raised when the same files give other pixels, or when others of them can be read.
DECODING = 2
# Raised when the same settings, images and weights give another result. 2: named random streams.
TRAINING = 2

# Settings that change no result.
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
_FREE_OF = {  # The same, by group: speed, memory, and where copies are kept.
    "data": ("cache", "threads", "workers"),
    # Up to rounding, and to which units are dropped.
    "teacher": ("rematerialise", "accumulate"),
    "train": ("rematerialise", "accumulate"),
    "information": ("rematerialise",),
    "student": ("group", "store_outputs"),
}
# Where the images and the weights lie; what they are is known by their digests.
_PLACES = {"data": ("path", "dir"), "teacher": ("init", "mirror"), "probe": ("path", "dir")}
# Of a study: what may change or grow while it goes on.
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
    """What decides a result.

    Attributes:
        settings: Those that decide it, nested, without paths; JSON values.
        inputs: Digests of what was read: "data" (images, labels and splits), "classes" (their
            names), and of the weights "teacher", or "models" by name. "input" is how batches come.
        code: `TRAINING` of the code that made it.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    code: int = TRAINING

    @property
    def key(self) -> str:
        """A hash of all of it."""
        return results.fingerprint(self._asdict())


def described(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that describe a run, places included: all but those that change no result.

    Args:
        plain: All settings of a run, nested; JSON values.
    """
    kept = {name: value for name, value in plain.items() if name not in _FREE}
    return _without(kept, _FREE_OF)


def deciding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the result of a run, for `Identity.settings`.

    Args:
        plain: All settings of a run, nested; JSON values.
    """
    return _without(described(plain), _PLACES)


def deciding_of_study(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a study that stay the same while its grid, rows, columns and seeds grow.

    Args:
        plain: All settings of a study, nested; JSON values.
    """
    kept = deciding({name: value for name, value in plain.items() if name not in _GROWING})
    base = kept.get("base", {})
    return kept | {"base": {name: value for name, value in base.items() if name not in _FREE}}


def _without(tree: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The same tree without these names of these groups, at any depth."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            dropped = set(names.get(name, ()))
            value = _without({k: v for k, v in value.items() if k not in dropped}, names)
        found[name] = value
    return found


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    counts: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """What differs between two trees of JSON values, as phrases such as "seed was 0, is 1".

    Args:
        before: What was there.
        now: What is there.
        counts: Whether a name that only one of them has counts, such as "teacher.rho".
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
