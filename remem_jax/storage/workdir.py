"""The folder of a run or a study, which belongs to one of them and has no other files."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import identity, locks, results
from remem_jax.storage.identity import Identity

STUDY = "study"  # The workflow of a study; all others are those of runs.
_CONFIG, _INPUTS, _LOCK = "config.json", "inputs.json", "lock"
MARK = ".remem_jax"  # The file that marks a folder as ours.
# Names that runs and studies write.
OURS = (
    *(_LOCK, _CONFIG, _INPUTS, "results.json", "report.html", "report.md"),
    *("metrics.jsonl", "tensorboard", "profile", "figures", "selected", "teachers", "students"),
    *("budget.json", "information", "expertness", "criticality", "plans.json"),
    *("study.json", "study.html", "study.md", "table.csv", "trials", "speeds.json"),
    "trials.csv",
    *("study.db", "study.journal", "tracked.json", "wandb", "copy.json"),
)
_LISTED = 5  # Differences listed in an error.
_UNRECORDED = 1  # The `identity.TRAINING` of versions that did not record it.


class HeldError(SettingError):
    """Another process runs in the folder."""


@contextlib.contextmanager
def claimed(directory: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Locks the folder for a run while the block runs.

    If several processes make one run, the first one locks it for all.

    Args:
        directory: The folder; created if missing.
        config: All settings, nested; JSON values.

    Raises:
        SettingError: If the folder cannot be written, belongs to another run or to a study, or
            has files that this package did not write and a run would replace.
        HeldError: If another process has locked it.
    """
    if not mesh.is_writer():
        yield
        return
    _require_ours(directory)
    _mark(directory)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locks.held(directory / _LOCK))
        except BlockingIOError:
            raise HeldError(
                f"Another process runs in {directory}; wait, or set --workdir."
            ) from None
        except OSError as error:
            raise _unwritable(directory, error) from None
        _require_same_config(directory, config, identity.deciding, lambda name: True)
        yield


def is_held(directory: pathlib.Path) -> bool:
    """Returns whether a process runs in the folder, or in one below it, as far as locks tell."""
    for path in directory.rglob(_LOCK):
        try:
            with locks.held(path):
                pass
        except BlockingIOError:
            return True
    return False


def share(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Claims the folder for a study, whose workers share it.

    Args:
        directory: The folder; created if missing.
        config: All settings of the study, nested; JSON values.

    Raises:
        SettingError: If the folder cannot be written, belongs to a run or to another study, or
            has files that this package did not write and a study would replace.
    """
    if not mesh.is_writer():
        return
    _require_ours(directory)
    _mark(directory)
    # Rows, columns and settings that only one of the two has are not a conflict.
    _require_same_config(directory, config, identity.deciding_of_study, lambda name: False)


def begin(directory: pathlib.Path, config: Mapping[str, Any], current: Identity) -> None:
    """Assigns a folder to a configuration and its inputs permanently.

    Call it after all checks of the user's input: a first start that was rejected leaves the folder
    free.

    Args:
        directory: A folder that is `claimed`, or shared, for `config`.
        config: All settings, nested; JSON values.
        current: Identity of the run or study.

    Raises:
        SettingError: If the images, the weights or `identity.TRAINING` have changed since the
            folder was begun.
    """
    expect(directory, current)
    results.write_for_all(directory / _CONFIG, config)


def expect(directory: pathlib.Path, current: Identity) -> None:
    """Records the inputs of a run, so that `begin` rejects any others.

    Raises:
        SettingError: If other inputs were recorded before.
    """
    if mesh.is_writer():
        _mark(directory)
    before = results.read_for_all(directory / _INPUTS) or {}
    code = before.get("code", _UNRECORDED) if before else current.code
    if code != current.code:
        raise SettingError(
            f"{directory} was begun by a version of remem_jax that gives other results from the "
            f"same settings (version {code} of training; this is version {current.code}): finish "
            "it with the version that began it, or set --workdir to a new folder."
        )
    # Folders of earlier versions have fewer digests.
    changed = identity.differences(
        {name: value for name, value in before.items() if name != "code"},
        current.inputs,
        counts=lambda name: False,
    )
    _require_none(changed, f"The inputs of {directory} have changed")
    merged = _merged(before, current.inputs) | {"code": current.code}
    if merged != before:
        results.write_for_all(directory / _INPUTS, merged)


def read_inputs(directory: pathlib.Path) -> Mapping[str, Any] | None:
    """Returns the recorded inputs of a run; None if it never began."""
    return results.read(directory / _INPUTS)


def _merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two trees; where both have a value, the later one is used."""
    merged = dict(before)
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _merged(old, value)
        merged[name] = value
    return merged


def _require_ours(directory: pathlib.Path) -> None:
    """Raises if files that are not ours have names that we write."""
    if is_ours(directory):
        return
    foreign = [name for name in OURS if (directory / name).exists()]
    if foreign:
        raise SettingError(
            f"{directory} holds {', '.join(foreign[:_LISTED])}, which no run of remem_jax wrote "
            "and which a run would replace; set --workdir to a new folder."
        )


def is_ours(directory: pathlib.Path) -> bool:
    """Returns whether a folder is that of a run or a study."""
    if (directory / MARK).is_file():
        return True
    with contextlib.suppress(OSError, SettingError):  # Earlier versions left no mark.
        before = read_config(directory)
        return (
            before is not None and "workflow" in before and ("base" in before or "data" in before)
        )
    return False


def _mark(directory: pathlib.Path) -> None:
    """Creates the folder, and marks it as ours."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARK).touch()
    except OSError as error:
        raise _unwritable(directory, error) from None


def _unwritable(directory: pathlib.Path, error: OSError) -> SettingError:
    return SettingError(f"Cannot write to {directory} ({error.strerror}); set --workdir.")


def _require_same_config(
    directory: pathlib.Path,
    config: Mapping[str, Any],
    deciding: Callable[[Mapping[str, Any]], dict[str, Any]],
    counts: Callable[[str], bool],
) -> None:
    """Raises if the folder belongs to settings with another result."""
    before = read_config(directory)
    if before is None:
        return
    kinds = ["study" if each.get("workflow") == STUDY else "run" for each in (before, config)]
    if kinds[0] != kinds[1]:
        raise SettingError(
            f"{directory} is the folder of a {kinds[0]}; set --workdir to another one for this "
            f"{kinds[1]}."
        )
    changed = identity.differences(deciding(before), deciding(config), counts=counts)
    _require_none(changed, f"{directory} belongs to another config")


def read_config(directory: pathlib.Path) -> Mapping[str, Any] | None:
    """Returns all settings of a folder's run or study, nested; None if none began.

    Raises:
        SettingError: If the file exists and cannot be read.
    """
    try:
        config = results.read(directory / _CONFIG)
        if config is not None and not isinstance(config, Mapping):
            raise ValueError("it holds no settings")
    except ValueError as error:
        raise SettingError(
            f"{directory / _CONFIG} cannot be read ({error}): put it back, or set another "
            "--workdir."
        ) from None
    return config


def _require_none(changed: list[str], complaint: str) -> None:
    if changed:
        more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
        raise SettingError(
            f"{complaint}: {'; '.join(changed[:_LISTED])}{more}. Go on with the old ones, or set "
            "another --workdir."
        )
