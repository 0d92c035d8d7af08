"""A mini version of the paper's Table 10, re-weighting and SAM each alone, with three seeds."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.tables import table10
from remem_jax import workflow
from remem_jax.storage import results
from tools.benchmarks import tiny as networks
from tools.gpu import images, worker

# The protocol does not depend on the speed of the device, so results of different GPUs compare.
TEACHER_STEPS, STUDENT_STEPS = 250, 750
TINY_STEPS = (2, 6)


def measure(
    context: worker.Context,
    report: worker.Report,
    seconds: float,
    *,
    weights: str,
    image_size: int,
    methods: Sequence[str],
    seeds: Sequence[int],
) -> worker.Found:
    """Measures the test accuracy of teachers and students, by seed and method, in a run per seed.

    After an interruption, a later call with the same `context.folder` resumes.
    """
    del seconds
    os.environ["REMEM_CACHE"] = str(context.folder / "cache")
    arrays = context.folder / "images.npz"
    if not arrays.exists():
        context.folder.mkdir(exist_ok=True)
        images.unpack(context.packed / images.FILE, arrays.with_suffix(".new"))
        arrays.with_suffix(".new").replace(arrays)  # Atomic.
    base = _config(arrays, context.packed / weights, image_size, tiny=context.tiny)
    steps = TINY_STEPS if context.tiny else (TEACHER_STEPS, STUDENT_STEPS)
    result: dict[str, Any] = {
        "teacher_steps": steps[0],
        "student_steps": steps[1],
        "settings": _settings(base),
        "runs": [],
    }
    for seed in seeds:
        folder = context.folder / f"{'_'.join(methods)}_{seed}"
        workflow.run(_run_config(base, methods, seed, steps), folder)
        result["runs"] += _rows(results.read(folder / "results.json"), seed)
        report(result)
    return result


def _config(
    arrays: pathlib.Path, weights: pathlib.Path, image_size: int, *, tiny: bool
) -> ConfigDict:
    """Returns the settings of all runs: configs/tables/table10.py:mini with one student."""
    config = table10.get_config("mini").base
    config.data.name, config.data.path = "arrays", str(arrays)
    config.data.image_size = image_size
    config.teacher.variant, config.teacher.init = "", str(weights)
    config.teacher.rho = 0.05  # The paper's 0.5 is for networks 15 times as large.
    config.student.weights = (0.5,)
    config.student.evaluations = 1
    config.choose_on_test = False
    config.compute_dtype = "float32" if tiny else "bfloat16"
    if tiny:
        config.student.model = networks.add_student()
        config.teacher.batch_size = config.student.batch_size = 8
    return config


def _run_config(
    base: ConfigDict, methods: Sequence[str], seed: int, steps: tuple[int, int]
) -> ConfigDict:
    config = base.copy_and_resolve_references()
    config.methods, config.seed = tuple(methods), seed
    teacher, student = steps
    config.teacher.steps, config.teacher.warmup_steps = (teacher,), teacher // 10
    config.student.steps, config.student.warmup_steps = student, student // 10
    config.save_every = student  # Training stages are too short to be resumed.
    return config


def _settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that the page shows."""
    teacher, student = config.teacher, config.student
    return {
        "image_size": config.data.image_size,
        "batch_size": teacher.batch_size,
        "compute_dtype": config.compute_dtype,
        "rho": teacher.rho,
        "mlp_weight": teacher.mlp_weight,
        "teacher_learning_rate": teacher.learning_rate,
        "student": student.model,
        "student_learning_rate": student.learning_rates[0],
        "temperature": student.temperatures[0],
        "weight": student.weights[0],
    }


def _rows(run_results: dict[str, Any] | None, seed: int) -> list[dict[str, Any]]:
    if run_results is None:
        raise RuntimeError("A run wrote no results.json.")
    metric = run_results["data"]["metric"]
    return [
        {
            "seed": seed,
            "method": row["method"],
            "metric": metric,
            "student": row["student"]["test"][metric],
            "teacher": row["teacher"]["test"][metric],
        }
        for row in run_results["methods"]
    ]
