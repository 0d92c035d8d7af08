"""One row compiled for one target, in a process of its own.

    python -m tools.aot.case ROW TARGET FILE

writes a `Result` as JSON. `tools.accelerators` calls it, with the environment that it needs.
"""

import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from remem_jax import mesh
from tools.aot import collectives, expected, rows, steps, targets

_GIB = 2**30
FITS, LARGE, WRONG, FAILED = "fits", "too large", "wrong", "failed"


class Result(NamedTuple):
    """What became of a row on a target.

    Attributes:
        row: Its name in `rows.ROWS`.
        target: Its name in `targets.TARGETS`.
        status: `FITS`; `LARGE`, if it takes more memory than a device has; `WRONG`, if it
            exchanges what it should not; `FAILED`, if it was not compiled.
        said: What is wrong.
        plan: What was chosen for it, of `steps.Step.plan`.
        bytes: What it takes of each device; None where that is not known.
        passed: For each kind of collective how many there are in a step, and their bytes.
        seconds: Of compiling, all functions together.
    """

    row: str
    target: str
    status: str
    said: str = ""
    plan: str = ""
    bytes: int | None = None
    passed: dict[str, list[int]] = {}  # noqa: RUF012  Never changed.
    seconds: float = 0.0


class Compiled(NamedTuple):
    """A function, compiled.

    Attributes:
        more: Bytes that it takes on each device while it runs, beyond its arguments.
        arguments: Bytes of those.
        found: What it passes between devices.
        seconds: What compiling took.
    """

    more: int
    arguments: int
    found: list[collectives.Collective]
    seconds: float


def main(row: str, target: str, file: str) -> None:
    """Compiles a row for a target, and writes what became of it."""
    pathlib.Path(file).write_text(json.dumps(compile_row(row, target)._asdict()))


def compile_row(name: str, on: str) -> Result:
    """Compiles a row for a target; what goes wrong is in the result."""
    row, target = rows.ROWS[name], targets.TARGETS[on]
    blank = Result(name, on, FAILED)
    try:
        config = row.config()
        devices = targets.make_mesh(target)
        step = row.make(steps.open_run(config, devices, target.memory))
    except Exception as error:  # noqa: BLE001  Whatever a step is made of may fail.
        return blank._replace(said=brief(error))
    compiled: list[Compiled] = []
    for function in step.functions:
        try:
            compiled.append(_compile(function))
        except Exception as error:  # noqa: BLE001  The compilers' errors are of many types.
            return _failure(error, blank._replace(plan=step.plan), function.name)
    total = _total(step, compiled, steps.RESIDENT_BYTES)
    wrong = [
        f"{function.name}: {said}"
        for function, one in zip(step.functions, compiled, strict=True)
        for said in expected.problems(one.found, _passing(function, step, devices, config.fsdp))
    ]
    return Result(
        name,
        on,
        WRONG if wrong else FITS if total <= target.memory else LARGE,
        "; ".join(wrong),
        step.plan,
        total,
        _passed([own for one in compiled for own in one.found]),
        sum(one.seconds for one in compiled),
    )


def _passing(
    function: steps.Function, step: steps.Step, on: jax.sharding.Mesh, fsdp: bool
) -> expected.Passing:
    trained, statistics = {}, {}
    if function.state is not None:
        trained, statistics = function.state.params, function.state.statistics
    return expected.Passing(trained, statistics, function.read, step.passes, on.size, fsdp)


def _compile(function: steps.Function) -> Compiled:
    began = time.monotonic()
    lowered = function.jitted.lower(*function.arguments)
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    takes = compiled.memory_analysis()
    more = takes.output_size_in_bytes - takes.alias_size_in_bytes + takes.temp_size_in_bytes
    more += takes.generated_code_size_in_bytes
    found = collectives.find(compiled.as_text())
    return Compiled(more, takes.argument_size_in_bytes, found, seconds)


def _total(step: steps.Step, compiled: Sequence[Compiled], resident: int) -> int:
    """Bytes on a device at the most: of all that is held, and of the function that takes most.

    A compiler may lay its arguments out with padding, which `held` does not know of.
    """
    held = mesh.device_bytes(step.held)
    return resident + max(
        held + one.more + max(one.arguments - mesh.device_bytes(function.arrays), 0)
        for function, one in zip(step.functions, compiled, strict=True)
    )


def _passed(found: Sequence[collectives.Collective]) -> dict[str, list[int]]:
    """Number and bytes of collectives, by kind, most first."""
    passed: dict[str, list[int]] = {}
    for one in found:
        number, size = passed.get(one.kind, (0, 0))
        times = one.times or 1
        passed[one.kind] = [number + times, size + times * one.bytes]
    return dict(sorted(passed.items(), key=lambda item: -item[1][1]))


def _failure(error: Exception, blank: Result, function: str) -> Result:
    """What became of a row that a compiler refuses: a TPU's does where memory does not do."""
    said = f"{function}: {brief(error)}"
    used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error))
    if not used:
        return blank._replace(said=said)
    size = int(float(used[1]) * 2 ** (10 * (1 + "KMGT".index(used[2]))))
    return blank._replace(status=LARGE, bytes=size)


def brief(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
