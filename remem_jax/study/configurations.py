"""The configurations of a study, and their Optuna trials: each is one attempt, by one worker."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

# User attributes of an Optuna trial that describe one attempt; the others describe its
# configuration. Only its own worker writes `record` and `failed`: a worker that fails a dead
# worker's trial does not overwrite them. `strike` marks an attempt that failed.
_ATTEMPT_ATTRIBUTES = {"worker", "beats", "record", "failed", "reason", "strike"}


class Configuration(NamedTuple):
    """Settings to try.

    Attributes:
        key: Fingerprint of the settings; it identifies the configuration.
        params: Finite numbers by name; the dashboard plots them.
        attributes: Other JSON values that the dashboard shows.
    """

    key: str
    params: Mapping[str, float]
    attributes: Mapping[str, Any]


def first_trial(configuration: Configuration) -> FrozenTrial:
    """Returns a waiting trial of a configuration.

    Raises:
        ValueError: If a number is not finite, or an attribute has a reserved name.
    """
    params = {name: float(number) for name, number in configuration.params.items()}
    not_finite = {name: number for name, number in params.items() if not math.isfinite(number)}
    reserved = sorted(configuration.attributes.keys() & (_ATTEMPT_ATTRIBUTES | {"key", "repeats"}))
    if not_finite or reserved:
        raise ValueError(
            f"A configuration needs finite params ({not_finite}) and no reserved attributes "
            f"({reserved})."
        )
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=params,
        # The dashboard compares only trials with the same ranges: almost all have [0, 1].
        distributions={k: FloatDistribution(min(v, 0), max(v, 1)) for k, v in params.items()},
        user_attrs={**configuration.attributes, "key": configuration.key},
    )


def next_trial(first: FrozenTrial) -> FrozenTrial:
    """Returns another waiting trial of a configuration, given the first.

    Its attribute "repeats" is the number of the first, which reports and logs show.
    """
    kept = {k: v for k, v in first.user_attrs.items() if k not in _ATTEMPT_ATTRIBUTES}
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=first.params,
        distributions=first.distributions,
        user_attrs={**kept, "repeats": first.number},
    )


def by_key(
    trials: Iterable[FrozenTrial], keys: Collection[str] | None
) -> dict[str, list[FrozenTrial]]:
    """Groups the trials of some configurations by key, in the order of their numbers.

    Args:
        trials: Trials of a study; some may not be of this package.
        keys: Keys of the configurations; None for all.
    """
    wanted = None if keys is None else frozenset(keys)
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        key = trial.user_attrs.get("key")
        if key is not None and (wanted is None or key in wanted):
            groups.setdefault(key, []).append(trial)
    return groups


def in_state(trials: Iterable[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    """Returns the trials in a state."""
    return [trial for trial in trials if trial.state == state]


def state(trials: Sequence[FrozenTrial], *, attempts: int) -> str:
    """Returns the state of a configuration: "waiting", "running", "done" or "failed" for good.

    Args:
        trials: All trials of the configuration.
        attempts: Number of failed attempts after which it has failed for good.
    """
    if in_state(trials, TrialState.COMPLETE):
        return "done"
    if in_state(trials, TrialState.RUNNING):
        return "running"
    return "waiting" if failure(trials, attempts=attempts) is None else "failed"


def worker(trials: Sequence[FrozenTrial]) -> Mapping[str, Any] | None:
    """Returns the process that runs a configuration; None if none does, or it just starts to."""
    running = in_state(trials, TrialState.RUNNING)
    return running[0].user_attrs.get("worker") if running else None


def failure(trials: Sequence[FrozenTrial], *, attempts: int) -> str | None:
    """Returns why a configuration has failed for good; None if it may be tried again."""
    for trial in in_state(trials, TrialState.FAIL):
        if "failed" in trial.user_attrs:
            return trial.user_attrs["failed"]
    reasons = failed_attempts(trials)
    if len(reasons) < attempts:
        return None
    return f"given up after {len(reasons)} attempts: {'; '.join(reasons)}"


def failed_attempts(trials: Sequence[FrozenTrial]) -> list[str]:
    """Returns the reasons of the attempts that failed; those that were stopped do not count."""
    ended = [trial.user_attrs for trial in in_state(trials, TrialState.FAIL)]
    return [attributes["reason"] for attributes in ended if attributes.get("strike")]
