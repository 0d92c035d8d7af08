"""Computes the digests of the images and weights that a study's trials read, before they run."""

import fnmatch
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, workflow
from remem_jax.checks import SettingError
from remem_jax.methods import METHODS
from remem_jax.settings import deciding, plain
from remem_jax.storage import identity, results, workdir
from remem_jax.storage.identity import Identity
from remem_jax.study import axes, queue
from remem_jax.study.space import Trial, key_by_place
from remem_jax.workflow import initial_checkpoints

_OF_STUDENT = ("init", "model", "stem", "mean", "std")
# Settings that determine which images and weights are read, by the name of their digest.
_READ = {
    "data": ("data.*",),
    "teacher": ("init", "teacher.init"),
    "student": tuple(f"student.{name}" for name in _OF_STUDENT),
}


class Inputs(NamedTuple):
    """Digests of images and weights.

    Attributes:
        digests: Digests by location; see `_places`.
        kept: Keys of trials of older versions, which are based on paths (`space.key_by_place`).
    """

    digests: Mapping[str, Mapping[str, Any]]
    kept: Collection[str] = ()

    def of(self, config: ConfigDict) -> dict[str, Any]:
        """Returns the digests of the inputs of a run; see `identity.Identity.inputs`."""
        return {
            name: digest
            for place, _ in _places(config)
            for name, digest in self.digests[place].items()
        }

    def identity(self, config: ConfigDict) -> Identity:
        """Returns the identity of a run: everything that its result depends on."""
        return Identity(deciding(config), self.of(config))

    def identify(self, config: ConfigDict) -> str:
        """Returns the key of a trial: that of its identity, or its older key if it was kept."""
        by_place = key_by_place(config)
        return by_place if by_place in self.kept else self.identity(config).key


def read(trials: Iterable[Trial]) -> Inputs:
    """Reads all images and weights of the trials, each once; all processes call it.

    Raises:
        SettingError: If some are missing or cannot be read.
    """
    digests: dict[str, dict[str, Any]] = {}
    for trial in trials:
        config = trial.config
        try:
            for place, read_inputs in _places(config):
                if place not in digests:
                    digests[place] = read_inputs(config)
        except SettingError as error:
            raise SettingError(
                f"{trial.row}, {trial.column}: {error} Or leave it out with config.only."
            ) from error
    return Inputs(json.loads(mesh.broadcast_text(json.dumps(digests))))


def of_study(config: ConfigDict, trials: Sequence[Trial], inputs: Inputs) -> Identity:
    """Returns the identity of a study: images by column and seed, weights by column and row.

    Where the grid varies what is read, they are listed for each value.
    """
    images: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    students: dict[str, Any] = {}
    for trial in trials:
        digests = inputs.of(trial.config)
        if "teacher" in digests:
            row = trial.row + _varied(trial, _READ["teacher"])
            weights.setdefault(trial.column, {})[row] = digests.pop("teacher")
        if "student" in digests:
            row = trial.row + _varied(trial, _READ["student"])
            students.setdefault(trial.column, {})[row] = digests.pop("student")
        seed = f"seed {trial.seed}{_varied(trial, _READ['data'])}"
        of_seed = images.setdefault(trial.column, {}).setdefault(seed, {})
        of_seed.update(digests)  # Only trials with a teacher read unlabelled images.
    settings = identity.deciding_of_study(plain(config))
    inputs_of_study = {"images": images, "weights": weights}
    return Identity(settings, inputs_of_study | ({"students": students} if students else {}))


def _varied(trial: Trial, patterns: Sequence[str]) -> str:
    """Describes the axes of a trial that match a pattern; empty if there are none."""
    point = {
        name: value
        for name, value in trial.point.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    return "".join(f", {text}" for text in axes.described(point))


def with_kept(
    inputs: Inputs, by_place: Mapping[str, Trial], shared: queue.Queue | None, folder: pathlib.Path
) -> Inputs:
    """Keeps the trials of a study that an older version started, so that they are not repeated.

    Their keys are based on paths. A trial keeps such a key if its inputs are unchanged; otherwise
    it starts over, under the key of its identity.

    Args:
        inputs: Inputs from `read`.
        by_place: All trials that may be scheduled, by `space.key_by_place`.
        shared: Queue of the study; None in processes other than the writer.
        folder: Folder of the study.
    """
    kept = []
    if shared:
        records, states = shared.records(by_place), shared.states(by_place)
        for key in states:
            digests = inputs.of(by_place[key].config)
            if key in records:
                earlier = _of_record(records[key])
            else:
                earlier = workdir.read_inputs(folder / "trials" / key) or {}
            is_same = not identity.differences(earlier, digests, counts=lambda name: False)
            is_same &= identity.code_of(deciding(by_place[key].config)) == identity.TRAINING
            if is_same and "data" in earlier:
                kept.append(key)
            elif key in records:
                logging.warning(
                    "Trial %s of an older version used other images or weights, or a loss that has "
                    "changed; it starts over.",
                    key,
                )
    return inputs._replace(kept=frozenset(json.loads(mesh.broadcast_text(json.dumps(kept)))))


def _of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the digests of the inputs of a finished trial."""
    data, models = record.get("data", {}), record.get("models", {})
    digests = {"data": data.get("fingerprint"), "teacher": models.get("init_digest")}
    return {name: digest for name, digest in digests.items() if digest is not None}


def _has_teacher(config: ConfigDict) -> bool:
    return any(METHODS[method].has_teacher for method in config.methods)


def _places(config: ConfigDict) -> list[tuple[str, Callable[[ConfigDict], dict[str, Any]]]]:
    """Returns a key for each location that a run reads from, and the function for its digests."""
    data = {"data": plain(config)["data"], "seed": config.seed}
    if config.data.unlabelled:
        data["distils"] = _has_teacher(config)
    places = [(results.fingerprint(data), workflow.read_data_inputs)]
    if _has_teacher(config):
        teacher = {"init": config.teacher.init, "mirror": config.teacher.mirror}
        places.append((results.fingerprint(teacher), workflow.read_weights_inputs))
    if initial_checkpoints.starts_pretrained(config):
        student = {name: config.student[name] for name in _OF_STUDENT}
        places.append((results.fingerprint(student), workflow.read_student_inputs))
    return places
