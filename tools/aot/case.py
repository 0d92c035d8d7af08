"""Compiles one row for one target in this process, and writes a `Result` as JSON.

    python -m tools.aot.case ROW TARGET FILE

`tools.accelerators` starts it with the environment that it needs.
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
    """The result of compiling a row for a target.

    Attributes:
        row: Name of the row in `rows.ROWS`.
        target: Name of the target in `targets.TARGETS`.
        status: `FITS`; `LARGE` if it needs more memory than a device has; `WRONG` if it has
            unexpected collectives; `FAILED` if it was not compiled.
        said: Description of the problem.
        plan: Chosen memory plan; see `steps.Step.plan`.
        bytes: Memory on each device; None if it is unknown.
        passed: Kind of collective -> number in a step, and their bytes.
        seconds: Compilation time of all functions.
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
    """A compiled function.

    Attributes:
        more: Bytes on each device while it runs, beyond its arguments.
        arguments: Bytes of its arguments on each device.
        collectives: Its collective operations.
        seconds: Compilation time.
    """

    more: int
    arguments: int
    collectives: list[collectives.Collective]
    seconds: float


def main(row: str, target: str, file: str) -> None:
    """Compiles a row for a target, and writes the result."""
    pathlib.Path(file).write_text(json.dumps(compile_row(row, target)._asdict()))


def compile_row(name: str, target_name: str) -> Result:
    """Compiles a row for a target; failures are part of the result."""
    row, target = rows.ROWS[name], targets.TARGETS[target_name]
    blank = Result(name, target_name, FAILED)
    try:
        config = row.config()
        devices = targets.make_mesh(target)
        step = row.make(steps.open_run(config, devices, target.memory))
    except Exception as error:  # noqa: BLE001  Making a step calls much of the package.
        return blank._replace(said=brief(error))
    compiled: list[Compiled] = []
    for function in step.functions:
        try:
            compiled.append(_compile(function))
        except Exception as error:  # noqa: BLE001  The compilers' errors are of many types.
            return _failure(error, blank._replace(plan=step.plan), function.name)
    total = _total(step, compiled, steps.RESIDENT_BYTES)
    problems = [
        f"{function.name}: {problem}"
        for function, program in zip(step.functions, compiled, strict=True)
        for problem in expected.problems(
            program.collectives, _passing(function, step, devices, config.fsdp)
        )
    ]
    return Result(
        name,
        target_name,
        WRONG if problems else FITS if total <= target.memory else LARGE,
        "; ".join(problems),
        step.plan,
        total,
        _totals([collective for program in compiled for collective in program.collectives]),
        sum(program.seconds for program in compiled),
    )


def _passing(
    function: steps.Function, step: steps.Step, devices: jax.sharding.Mesh, fsdp: bool
) -> expected.Passing:
    trained, statistics = {}, {}
    if function.state is not None:
        trained, statistics = function.state.params, function.state.statistics
    return expected.Passing(trained, statistics, function.read, step.passes, devices.size, fsdp)


def _compile(function: steps.Function) -> Compiled:
    began = time.monotonic()
    lowered = function.jitted.lower(*function.arguments)
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    more = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    more += memory.generated_code_size_in_bytes
    found = collectives.find(compiled.as_text())
    return Compiled(more, memory.argument_size_in_bytes, found, seconds)


def _total(step: steps.Step, compiled: Sequence[Compiled], resident: int) -> int:
    """Returns the peak bytes on a device: all arrays held, and the function that needs most.

    A compiler may pad arguments, which the size of `held` does not include.
    """
    held = mesh.device_bytes(step.held)
    return resident + max(
        held + program.more + max(program.arguments - mesh.device_bytes(function.arrays), 0)
        for function, program in zip(step.functions, compiled, strict=True)
    )


def _totals(found: Sequence[collectives.Collective]) -> dict[str, list[int]]:
    """Returns number and bytes of collectives by kind, the largest first."""
    totals: dict[str, list[int]] = {}
    for collective in found:
        number, size = totals.get(collective.kind, (0, 0))
        times = collective.times or 1
        totals[collective.kind] = [number + times, size + times * collective.bytes]
    return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def _failure(error: Exception, blank: Result, function: str) -> Result:
    """Returns the result of a compiler's error, which for a TPU may mean too little memory."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error))
    if not used:
        return blank._replace(said=f"{function}: {brief(error)}")
    size = int(float(used[1]) * 2 ** (10 * (1 + "KMGT".index(used[2]))))
    return blank._replace(status=LARGE, bytes=size)


def brief(error: Exception) -> str:
    """Returns an error as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
