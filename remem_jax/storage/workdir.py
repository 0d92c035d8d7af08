"""The folder of a run: one configuration, one data set, one start of it at a time."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from remem_jax import mesh
from remem_jax.checks import SettingError
from remem_jax.storage import locks, results

_CONFIG, _INPUTS = "config.json", "inputs.json"
_SHOWN = 5  # Settings listed in an error.


class HeldError(SettingError):
    """Another process runs in the folder."""


@contextlib.contextmanager
def claimed(directory: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Holds the folder for a configuration while the block runs.

    Where several processes make one run, the first one holds it for all.

    Args:
        directory: Made if it is not there.
        config: Nested settings that decide the result; JSON values.

    Raises:
        SettingError: If the folder cannot be written, or belongs to another configuration.
        HeldError: If it is held by another process.
    """
    if not mesh.is_writer():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(locks.held(directory / "lock"))
        except BlockingIOError:
            raise HeldError(
                f"Another process runs in {directory}; wait, or set --workdir."
            ) from None
        except OSError as error:
            raise SettingError(
                f"Cannot write to {directory} ({error.strerror}); set --workdir."
            ) from None
        before = results.read(directory / _CONFIG)
        _require_same(before, config, f"{directory} belongs to another config")
        yield


def begin(directory: pathlib.Path, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Gives a claimed folder to a configuration and its inputs, from now on.

    Called when everything that the user gave has been found usable: a first start that was
    refused leaves the folder free.

    Args:
        directory: A folder that is `claimed` for `config`.
        config: As in `claimed`.
        inputs: Hashes of what the run reads.

    Raises:
        SettingError: If a run that goes on would read other data or weights than before.
    """
    before = results.read_for_all(directory / _INPUTS)
    _require_same(before, inputs, f"The inputs of {directory} have changed")
    results.write_for_all(directory / _INPUTS, inputs)
    results.write_for_all(directory / _CONFIG, config)


def _require_same(
    before: Mapping[str, Any] | None, content: Mapping[str, Any], complaint: str
) -> None:
    old, new = _flat(content if before is None else before), _flat(content)
    changed = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise SettingError(
            f"{complaint}: {'; '.join(changed[:_SHOWN])}{more}. Go on with the old ones, or set "
            "another --workdir."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
