"""Compares a GPU's logits, gradients and steps with a CPU's, which were computed beforehand."""

import pathlib
import statistics
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from tools.benchmarks import tiny
from tools.gpu import programs, sketch, worker
from tools.gpu.programs import Inputs, Values

REFERENCE = "reference.npz"
# Tolerances of relative errors. float32 sums in another order. In bfloat16, errors may be twice
# those of the CPU's bfloat16, plus one rounding of values, because the CPU's error of a single
# number, such as a loss, may be small by chance.
FLOAT32_TOLERANCE, BFLOAT16_FACTOR, BFLOAT16_ROUNDING = 1e-3, 2.0, 2.0**-8


def write_reference(
    path: pathlib.Path, inputs: Inputs, chosen: Mapping[str, Collection[str]]
) -> None:
    """Runs programs, given by type, on the device of this process, and saves their results."""
    arrays: dict[str, Any] = {"images": inputs.images, "labels": inputs.labels}
    for dtype, names in chosen.items():
        by_name = programs.make(inputs, dtype)
        for name in names:
            values = by_name[name]()
            for value_name, value in values.exact.items():
                arrays[f"{dtype}/{name}/exact/{value_name}"] = np.asarray(value)
            for param, norm in values.sketched.norms.items():
                arrays[f"{dtype}/{name}/norm/{param}"] = np.float64(norm)
                arrays[f"{dtype}/{name}/sums/{param}"] = values.sketched.sums[param]
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_reference(path: pathlib.Path, weights: pathlib.Path) -> tuple[Inputs, dict[str, Values]]:
    """Returns the inputs, and the results of the CPU by "type/program"."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    inputs = Inputs(weights, arrays.pop("images"), arrays.pop("labels"))
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, array in arrays.items():
        dtype, program, kind, value_name = name.split("/", 3)
        kinds = results.setdefault(f"{dtype}/{program}", {"exact": {}, "norm": {}, "sums": {}})
        kinds[kind][value_name] = float(array) if kind == "norm" else array
    return inputs, {
        name: Values(kinds["exact"], sketch.Sketches(kinds["norm"], kinds["sums"]), None)
        for name, kinds in results.items()
    }


def compare(
    context: worker.Context, report: worker.Report, seconds: float, *, dtype: str, weights: str
) -> worker.Found:
    """Returns the relative errors of every program in a type, compared with the CPU in float32.

    For bfloat16, the errors of the CPU in bfloat16 are returned, too.
    """
    del seconds
    inputs, reference = read_reference(context.packed / REFERENCE, context.packed / weights)
    if context.tiny:
        inputs = inputs._replace(student=tiny.add_student())
    tasks = {
        name: lambda name=name, program=program: _compared(name, dtype, program(), reference)
        for name, program in programs.make(inputs, dtype).items()
        if f"{dtype}/{name}" in reference
    }
    return worker.run_each({}, tasks.items(), report) | {"peak_bytes": _peak_bytes()}


def _compared(
    name: str, dtype: str, values: Values, reference: dict[str, Values]
) -> dict[str, Any]:
    exact, same_type = reference[f"float32/{name}"], reference[f"{dtype}/{name}"]
    result = {
        "ours": _errors(values, exact),
        "cpu": _errors(same_type, exact) if dtype != "float32" else None,
        "held_bytes": values.held_bytes,
    }
    return result | {"agrees": _agrees(result["ours"], result["cpu"])}


def _errors(values: Values, expected: Values) -> dict[str, Any]:
    """Returns relative errors of exact values, of the whole gradient, and of each parameter's."""
    by_param = sketch.errors(values.sketched, expected.sketched)
    worst = max(by_param, key=lambda name: by_param[name])
    return {
        "exact": {
            name: _distance(values.exact[name], value) for name, value in expected.exact.items()
        },
        "gradient": sketch.total_error(values.sketched, expected.sketched),
        "parameters": len(by_param),
        "median": statistics.median(by_param.values()),
        "worst": by_param[worst],
        "worst_parameter": worst,
    }


def _distance(value: Any, expected: Any) -> float:
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(value - expected) / max(np.linalg.norm(expected), 1e-300))


def _agrees(ours: dict[str, Any], cpu: dict[str, Any] | None) -> bool:
    """Returns whether exact values and the whole gradient are within the tolerances above."""
    if cpu is None:
        return max(*ours["exact"].values(), ours["gradient"]) <= FLOAT32_TOLERANCE
    return ours["gradient"] <= BFLOAT16_FACTOR * cpu["gradient"] and all(
        error <= BFLOAT16_FACTOR * cpu["exact"][name] + BFLOAT16_ROUNDING
        for name, error in ours["exact"].items()
    )


def _peak_bytes() -> int | None:
    stats = jax.devices()[0].memory_stats()
    return stats and stats["peak_bytes_in_use"]
