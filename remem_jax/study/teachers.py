"""The teachers of a study: which trials share one, and where it is kept."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from remem_jax.methods import METHODS
from remem_jax.settings import deciding, plain
from remem_jax.storage import checkpoints, results
from remem_jax.storage.identity import Identity, described, without_additions
from remem_jax.study.copies import Copies
from remem_jax.study.inputs import Inputs
from remem_jax.study.space import Trial
from remem_jax.workflow.remem import shared_teachers

_FOLDER = "teachers"  # In that of the study.
# Settings of a run that its teachers do not depend on, and inputs that they do.
_OF_OTHERS = ("student", "student_init", "information", "flatness", "choose_on_test")
_UNLABELLED = ("unlabelled", "unlabelled_share")  # Of `data`.
_INPUTS = ("data", "classes", "teacher")


def settings_key(config: ConfigDict) -> str:
    """Returns a hash of the settings and paths that decide the teachers of a trial.

    It is known before images and weights are read. "" without a teacher.
    """
    if not _has_teacher(config):
        return ""
    return results.fingerprint(_of_teachers(without_additions(described(plain(config)))))


def key(config: ConfigDict, inputs: Inputs) -> str:
    """Returns the key of the teachers of a trial, which trials with the same ones share.

    It is a hash of everything that decides them: settings, images, initial weights, seed, code.
    "" without a teacher.
    """
    if not _has_teacher(config):
        return ""
    digests = inputs.of(config)
    used = {name: digests[name] for name in _INPUTS if name in digests}
    return Identity(_of_teachers(deciding(config)), used).key


def _has_teacher(config: ConfigDict) -> bool:
    (method,) = config.methods
    return METHODS[method].has_teacher


def _method(trial: Trial) -> str:
    (method,) = trial.config.methods
    return method


def _of_teachers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that teachers depend on."""
    kept = {name: value for name, value in settings.items() if name not in _OF_OTHERS}
    data = {name: value for name, value in kept["data"].items() if name not in _UNLABELLED}
    return {**kept, "data": data}


class Teachers:
    """The teachers of a study, shared by its trials in a folder of the study."""

    def __init__(self, directory: pathlib.Path, inputs: Inputs, copies: Copies) -> None:
        """Stores where teachers are.

        Args:
            directory: Folder of the study.
            inputs: Digests of the inputs of its trials.
            copies: Copies of its folders, which workers without this folder share.
        """
        self._directory, self._inputs, self._copies = directory, inputs, copies
        self._keys: dict[str, str] = {}  # By the key of a trial; each takes a millisecond.

    def folder(self, trial: Trial) -> pathlib.Path | None:
        """Returns the folder of a trial's teachers; None without a teacher."""
        if trial.key not in self._keys:
            self._keys[trial.key] = key(trial.config, self._inputs)
        of_trial = self._keys[trial.key]
        return self._directory / _FOLDER / of_trial if of_trial else None

    def free(self, trials: Mapping[str, Trial], states: Mapping[str, str]) -> list[str]:
        """Returns the keys of the trials that would not wait for another worker's teacher.

        Their teacher is finished, or no running trial trains it, as far as this worker could share
        it: with workers that have neither this folder nor copies, it could not.

        Args:
            trials: Trials by key.
            states: State of each trial in the queue.
        """
        folders = {name: self.folder(trial) for name, trial in trials.items()}
        running = {folders[name] for name in trials if states.get(name) == "running"}
        copied = self._copies.store is not None
        busy = {folder for folder in running if folder and (copied or folder.is_dir())}
        methods = {folders[name]: _method(trial) for name, trial in trials.items()}
        waited_for = {each for each in busy if not self._is_finished(each, methods[each])}
        return [name for name, folder in folders.items() if folder not in waited_for]

    def _is_finished(self, folder: pathlib.Path, method: str) -> bool:
        result = shared_teachers.result_pattern(method)
        return any(folder.glob(result)) or self._copies.has(folder, result)

    def remove_unneeded(
        self, ended: Iterable[Trial], others: Iterable[Trial]
    ) -> list[pathlib.Path]:
        """Deletes the weights of the teachers of trials that ended, if no other trial needs them.

        Returns:
            The folders of the teachers whose weights were deleted.
        """
        needed = {self.folder(trial) for trial in others}
        folders = {folder for trial in ended if (folder := self.folder(trial)) is not None}
        removed = [folder for folder in folders - needed if any(folder.glob("*/teachers"))]
        for folder in removed:
            for weights in folder.glob("*/teachers"):
                checkpoints.remove(weights)
        return removed
