"""What the trials of a study read, known by digests before any of them is run."""

import json
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, workflow
from remem_jax.checks import SettingError
from remem_jax.settings import METHODS, deciding, plain
from remem_jax.storage import identity, results, workdir
from remem_jax.storage.identity import Identity
from remem_jax.study import queue
from remem_jax.study.space import Trial, key_by_place


class Inputs(NamedTuple):
    """Digests of images and weights.

    Attributes:
        digests: By where they lie, as `_data_place` and `_weights_place` have it.
        kept: Keys of trials that are known by where their images lie, as older studies have them.
    """

    digests: Mapping[str, Mapping[str, Any]]
    kept: Collection[str] = ()

    def of(self, config: ConfigDict) -> dict[str, Any]:
        """Digests of what a run reads; see `identity.Identity.inputs`."""
        places = [_data_place(config), *([_weights_place(config)] if _has_teacher(config) else [])]
        return {name: digest for place in places for name, digest in self.digests[place].items()}

    def identity(self, config: ConfigDict) -> Identity:
        """What decides the result of a run."""
        return Identity(deciding(config), self.of(config))

    def identify(self, config: ConfigDict) -> str:
        """The key of a trial: that of its identity, or the one under which it was begun before."""
        by_place = key_by_place(config)
        return by_place if by_place in self.kept else self.identity(config).key


def read(trials: Iterable[Trial]) -> Inputs:
    """Reads all images and weights of the trials, each of them once; all processes call it.

    Raises:
        SettingError: If some of them are not there or cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        config = trial.config
        try:
            if (place := _data_place(config)) not in found:
                found[place] = workflow.read_data_inputs(config)
            if _has_teacher(config) and (place := _weights_place(config)) not in found:
                found[place] = workflow.read_weights_inputs(config)
        except SettingError as error:
            raise SettingError(
                f"{trial.row}, {trial.column}: {error} Or leave it out by config.only."
            ) from error
    return Inputs(json.loads(mesh.broadcast_text(json.dumps(found))))


def of_study(config: ConfigDict, trials: Sequence[Trial], inputs: Inputs) -> Identity:
    """What a study is of, by column and seed, or column and row."""
    images: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for trial in trials:
        own = inputs.of(trial.config)
        if "teacher" in own:
            weights.setdefault(trial.column, {})[trial.row] = own.pop("teacher")
        images.setdefault(trial.column, {})[f"seed {trial.seed}"] = own
    settings = identity.deciding_of_study(plain(config))
    return Identity(settings, {"images": images, "weights": weights})


def with_kept(
    inputs: Inputs, by_place: Mapping[str, Trial], shared: queue.Queue | None, folder: pathlib.Path
) -> Inputs:
    """The same, where what a study of an older version has done is not done again.

    Its trials are known by where their images lie. A trial is kept under that key if what it read
    is what lies there now; else it starts over, under a key of its own.

    Args:
        inputs: From `read`.
        by_place: All trials that the study may want, by `space.key_by_place`.
        shared: What workers have found; None where another process of this worker has it.
        folder: Of the study.
    """
    kept = []
    if shared:
        records, states = shared.records(by_place), shared.states(by_place)
        for key in states:
            now = inputs.of(by_place[key].config)
            if key in records:
                before = _of_record(records[key])
            else:
                before = workdir.read_inputs(folder / "trials" / key) or {}
            same = not identity.differences(before, now, counts=lambda name: False)
            if same and "data" in before:
                kept.append(key)
            elif key in records:
                logging.warning(
                    "Trial %s of an older version was of other images or weights; it starts over.",
                    key,
                )
    return inputs._replace(kept=frozenset(json.loads(mesh.broadcast_text(json.dumps(kept)))))


def _of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what a finished trial read."""
    data, models = record.get("data", {}), record.get("models", {})
    found = {"data": data.get("fingerprint"), "teacher": models.get("init_digest")}
    return {name: digest for name, digest in found.items() if digest is not None}


def _has_teacher(config: ConfigDict) -> bool:
    return any(METHODS[method] is not None for method in config.methods)


def _data_place(config: ConfigDict) -> str:
    return results.fingerprint({"data": plain(config)["data"], "seed": config.seed})


def _weights_place(config: ConfigDict) -> str:
    return results.fingerprint({"init": config.teacher.init, "mirror": config.teacher.mirror})
