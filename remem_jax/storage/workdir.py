"""The folder of a run or a study: it belongs to one of them, and holds no other files."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import identity, locks, results
from remem_jax.storage.identity import Identity

STUDY = "study"  # The workflow of a study; every other is a run's.
_CONFIG, _INPUTS, _LOCK = "config.json", "inputs.json", "lock"
MARK = ".remem_jax"  # The file by which a folder is known as ours.
# What runs and studies write.
OURS = (
    *(_LOCK, _CONFIG, _INPUTS, "results.json", "report.html", "report.md", "pretrained.npz"),
    *("metrics.jsonl", "tensorboard", "profile", "figures", "selected", "teachers", "students"),
    *("pretrain", "information", "expertness", "criticality", "plans.json"),
    *("study.json", "study.html", "study.md", "table.csv", "trials", "speeds.json"),
    *("study.db", "study.journal"),
)
_SHOWN = 5  # Differences listed in an error.
_UNRECORDED = 1  # The `identity.TRAINING` of versions that did not write it down.


class HeldError(SettingError):
    """Another process runs in the folder."""


@contextlib.contextmanager
def claimed(directory: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Holds the folder for a run while the block runs.

    Where several processes make one run, the first one holds it for all.

    Args:
        directory: Made if it is not there.
        config: All settings, nested; JSON values.

    Raises:
        SettingError: If the folder cannot be written, belongs to another run or to a study, or
            holds files that this package did not write and that a run would replace.
        HeldError: If it is held by another process.
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


def share(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Takes the folder for a study, whose workers share it.

    Args:
        directory: Made if it is not there.
        config: All settings of the study, nested; JSON values.

    Raises:
        SettingError: If the folder cannot be written, belongs to a run or to another study, or
            holds files that this package did not write and that a study would replace.
    """
    if not mesh.is_writer():
        return
    _require_ours(directory)
    _mark(directory)
    # A row, a column or a setting that only one of the two has is no contradiction.
    _require_same_config(directory, config, identity.deciding_of_study, lambda name: False)


def begin(directory: pathlib.Path, config: Mapping[str, Any], own: Identity) -> None:
    """Gives a folder to a configuration and its inputs, from now on.

    Called when everything that the user gave has been found usable: a first start that was
    refused leaves the folder free.

    Args:
        directory: A folder that is `claimed`, or shared, for `config`.
        config: As there.
        own: Of the run, or the study.

    Raises:
        SettingError: If the images, the weights or the version of the code that matters have
            changed since the folder was begun.
    """
    expect(directory, own)
    results.write_for_all(directory / _CONFIG, config)


def expect(directory: pathlib.Path, own: Identity) -> None:
    """Writes down what a run in a folder reads, so that `begin` refuses anything else.

    Raises:
        SettingError: If something else was written down before.
    """
    if mesh.is_writer():
        _mark(directory)
    before = results.read_for_all(directory / _INPUTS) or {}
    code = before.get("code", _UNRECORDED) if before else own.code
    if code != own.code:
        raise SettingError(
            f"{directory} was begun by a version of remem_jax that gives other results from the "
            f"same settings (version {code} of training; this is version {own.code}): finish it "
            "with the version that began it, or set --workdir to a new folder."
        )
    # Folders of older versions have fewer digests.
    changed = identity.differences(
        {name: value for name, value in before.items() if name != "code"},
        own.inputs,
        counts=lambda name: False,
    )
    _require_none(changed, f"The inputs of {directory} have changed")
    merged = _merged(before, own.inputs) | {"code": own.code}
    if merged != before:
        results.write_for_all(directory / _INPUTS, merged)


def read_inputs(directory: pathlib.Path) -> Mapping[str, Any] | None:
    """What a run in a folder reads, as `begin` wrote it down; None if it never began."""
    return results.read(directory / _INPUTS)


def _merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one; of what both have, the value of the later."""
    found = dict(before)
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _merged(old, value)
        found[name] = value
    return found


def _require_ours(directory: pathlib.Path) -> None:
    """Raises where files that are not ours have the names of those that we write."""
    if _is_ours(directory):
        return
    foreign = [name for name in OURS if (directory / name).exists()]
    if foreign:
        raise SettingError(
            f"{directory} holds {', '.join(foreign[:_SHOWN])}, which no run of remem_jax wrote and "
            "which a run would replace; set --workdir to a new folder."
        )


def _is_ours(directory: pathlib.Path) -> bool:
    if (directory / MARK).is_file():
        return True
    with contextlib.suppress(OSError, SettingError):  # Older versions left no mark.
        before = read_config(directory)
        return (
            before is not None and "workflow" in before and ("base" in before or "data" in before)
        )
    return False


def _mark(directory: pathlib.Path) -> None:
    """Makes the folder, and marks it as ours."""
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
    """Raises if the folder was begun with settings that decide otherwise."""
    before = read_config(directory)
    if before is None:
        return
    kinds = ["study" if one.get("workflow") == STUDY else "run" for one in (before, config)]
    if kinds[0] != kinds[1]:
        raise SettingError(
            f"{directory} is the folder of a {kinds[0]}; set --workdir to another one for this "
            f"{kinds[1]}."
        )
    changed = identity.differences(deciding(before), deciding(config), counts=counts)
    _require_none(changed, f"{directory} belongs to another config")


def read_config(directory: pathlib.Path) -> Mapping[str, Any] | None:
    """All settings of what began in a folder, nested; None if nothing did.

    Raises:
        SettingError: If the file is there and cannot be read.
    """
    try:
        found = results.read(directory / _CONFIG)
        if found is not None and not isinstance(found, Mapping):
            raise ValueError("it holds no settings")
    except ValueError as error:
        raise SettingError(
            f"{directory / _CONFIG} cannot be read ({error}): put it back, or set another "
            "--workdir."
        ) from None
    return found


def _require_none(changed: list[str], complaint: str) -> None:
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise SettingError(
            f"{complaint}: {'; '.join(changed[:_SHOWN])}{more}. Go on with the old ones, or set "
            "another --workdir."
        )
