"""Settings that save device memory: division of a batch, and rematerialisation."""

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from remem_jax import checks, platforms
from remem_jax.models.rematerialisation import RECOMPUTED
from remem_jax.train.division import Division

AUTO = "auto"  # Recomputes as little as the device's memory allows.
# Values in earlier configs; the command line gives them as strings.
_EARLIER = {True: "blocks", "True": "blocks", False: AUTO, "False": AUTO}


def recomputed(name: str, value: Any) -> str:
    """Returns the value of `rematerialise`: `AUTO`, or one of `RECOMPUTED`.

    Args:
        name: Name of the setting, for messages.
        value: Its value, which in earlier configs may be True or False.

    Raises:
        SettingError: If the value is unknown.
    """
    if isinstance(value, str | bool):
        value = _EARLIER.get(value, value)
    checks.one_of(name, value, (AUTO, *RECOMPUTED))
    return value


def check(settings: ConfigDict) -> None:
    """Raises `SettingError` for the first setting of a teacher's memory that cannot be used."""
    recomputed("config.teacher.rematerialise", settings.rematerialise)
    checks.at_least("config.teacher.accumulate", settings.accumulate, 0)
    division(settings)


def division(
    settings: ConfigDict, on: Mesh | None = None, accumulate: int | None = None
) -> Division:
    """Returns how batches are divided on a mesh; None is one device.

    Args:
        settings: Settings of a teacher.
        on: The mesh of devices.
        accumulate: Number of microbatches; None is the setting `accumulate`.

    Raises:
        SettingError: If the batch cannot be divided in this way.
    """
    devices = 1 if on is None else on.size
    group = settings.ascent_examples
    if group < 0:
        group = settings.batch_size // devices
    microbatches = settings.accumulate if accumulate is None else accumulate
    looped = on is not None and platforms.has_sam_loop(on.devices.flat[0])
    result = Division(group, max(microbatches, 1), on if devices > 1 else None, looped)
    try:
        result.counts(settings.batch_size)
    except ValueError as error:
        raise checks.SettingError(
            f"{error} Set config.teacher.ascent_examples, config.teacher.accumulate or "
            "config.teacher.batch_size."
        ) from error
    return result


def splits(settings: ConfigDict, on: Mesh) -> Iterator[int]:
    """Yields values of `accumulate` that divide a batch; each at least doubles the one before."""
    before = 0
    for accumulate in range(1, settings.batch_size // on.size + 1):
        try:
            groups, microbatches = division(settings, on, accumulate).counts(settings.batch_size)
        except checks.SettingError:
            continue
        if groups * microbatches >= 2 * before:
            before = groups * microbatches
            yield accumulate
