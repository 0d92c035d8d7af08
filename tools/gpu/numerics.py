"""A GPU's logits, gradients and steps beside those of a CPU, which were computed beforehand."""

import pathlib
import statistics
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from tools.gpu import programs, sketch, worker
from tools.gpu.programs import Inputs, Values

REFERENCE = "reference.npz"
# A relative error that is no cause for concern: float32 sums in another order; and in bfloat16 as
# much as the CPU's own bfloat16 has, twice, and one rounding of values, since the error of a single
# number, such as a loss, may be small by chance.
FLOAT32_TOLERANCE, BFLOAT16_FACTOR, BFLOAT16_ROUNDING = 1e-3, 2.0, 2.0**-8


def write_reference(
    path: pathlib.Path, inputs: Inputs, chosen: Mapping[str, Collection[str]]
) -> None:
    """Computes programs, by type, on this process's device, and keeps what they give."""
    arrays: dict[str, Any] = {"images": inputs.images, "labels": inputs.labels}
    for dtype, names in chosen.items():
        known = programs.make(inputs, dtype)
        for name in names:
            values = known[name]()
            for of, value in values.exact.items():
                arrays[f"{dtype}/{name}/exact/{of}"] = np.asarray(value)
            for of, norm in values.sketched.norms.items():
                arrays[f"{dtype}/{name}/norm/{of}"] = np.float64(norm)
                arrays[f"{dtype}/{name}/sums/{of}"] = values.sketched.sums[of]
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_reference(path: pathlib.Path, weights: pathlib.Path) -> tuple[Inputs, dict[str, Values]]:
    """The inputs, and what the CPU has given, by "type/program"."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    inputs = Inputs(weights, arrays.pop("images"), arrays.pop("labels"))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, array in arrays.items():
        dtype, program, kind, of = name.split("/", 3)
        kinds = found.setdefault(f"{dtype}/{program}", {"exact": {}, "norm": {}, "sums": {}})
        kinds[kind][of] = float(array) if kind == "norm" else array
    return inputs, {
        name: Values(kinds["exact"], sketch.Sketches(kinds["norm"], kinds["sums"]), None)
        for name, kinds in found.items()
    }


def compare(
    context: worker.Context, report: worker.Report, seconds: float, *, dtype: str, weights: str
) -> worker.Found:
    """Relative errors of every program in a type, against the CPU in float32.

    In bfloat16 they stand beside the errors that the CPU has in bfloat16.
    """
    del seconds
    inputs, reference = read_reference(context.packed / REFERENCE, context.packed / weights)
    works = {
        name: lambda name=name, program=program: _compared(name, dtype, program(), reference)
        for name, program in programs.make(inputs, dtype).items()
        if f"{dtype}/{name}" in reference
    }
    return worker.each({}, works.items(), report) | {"peak_bytes": _peak_bytes()}


def _compared(name: str, dtype: str, found: Values, reference: dict[str, Values]) -> dict[str, Any]:
    exact, same_type = reference[f"float32/{name}"], reference[f"{dtype}/{name}"]
    result = {
        "ours": _errors(found, exact),
        "cpu": _errors(same_type, exact) if dtype != "float32" else None,
        "held_bytes": found.held_bytes,
    }
    return result | {"agrees": _agrees(result["ours"], result["cpu"])}


def _errors(found: Values, expected: Values) -> dict[str, Any]:
    """Relative errors: of each exact value, of each parameter's gradient, of the whole gradient."""
    each = sketch.errors(found.sketched, expected.sketched)
    worst = max(each, key=lambda name: each[name])
    return {
        "exact": {
            name: _distance(found.exact[name], value) for name, value in expected.exact.items()
        },
        "gradient": sketch.total_error(found.sketched, expected.sketched),
        "parameters": len(each),
        "median": statistics.median(each.values()),
        "worst": each[worst],
        "worst_parameter": worst,
    }


def _distance(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def _agrees(ours: dict[str, Any], cpu: dict[str, Any] | None) -> bool:
    """Whether all that a user would notice is within the tolerance; see the top of the module."""
    if cpu is None:
        return max(*ours["exact"].values(), ours["gradient"]) <= FLOAT32_TOLERANCE
    return ours["gradient"] <= BFLOAT16_FACTOR * cpu["gradient"] and all(
        error <= BFLOAT16_FACTOR * cpu["exact"][name] + BFLOAT16_ROUNDING
        for name, error in ours["exact"].items()
    )


def _peak_bytes() -> int | None:
    found = jax.devices()[0].memory_stats()
    return found and found["peak_bytes_in_use"]
