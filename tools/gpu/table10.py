"""A mini version of the paper's Table 10: what re-weighting and SAM do alone, with three seeds."""

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.tables import table10
from remem_jax import workflow
from remem_jax.settings import METHODS
from remem_jax.storage import results
from remem_jax.workflow import cost
from tools.gpu import images, worker

# The methods of one run: those that matter most are done for all seeds before the others.
METHODS_OF_RUNS = (("finetune", "remem"), ("sam", "reweight"))
STUDENT_STEPS = 3  # Of a student for each of its teacher.
_LEAST, _MOST = 60, 500  # Steps of a teacher.
_TRAINING = 0.5  # Share of the time that steps take; the rest goes to compiling and evaluation.


def measure(
    context: worker.Context,
    report: worker.Report,
    seconds: float,
    *,
    weights: str,
    image_size: int,
    seeds: Sequence[int],
) -> worker.Found:
    """Test accuracies of teachers and students, by seed and method, for as many as time allows."""
    end = time.monotonic() + seconds
    os.environ["REMEM_CACHE"] = str(context.folder / "cache")
    arrays = context.folder / "images.npz"
    images.unpack(context.packed / images.FILE, arrays)
    base = _config(arrays, context.packed / weights, image_size, tiny=context.tiny)
    runs_of, steps = METHODS_OF_RUNS[:1], 2
    if not context.tiny:
        speed = workflow.measure_speed(_of_run(base, ("finetune",), 0, _LEAST))
        runs_of, steps = _plan(speed, len(seeds), end - time.monotonic())
    found: dict[str, Any] = {
        "teacher_steps": steps,
        "student_steps": STUDENT_STEPS * steps,
        "settings": _settings(base),
        "runs": [],
    }
    for methods in runs_of:
        for seed in seeds:
            longest = max((run["seconds"] for run in found["runs"]), default=0)
            if time.monotonic() + longest > end:
                return found | {"out_of_time": True}
            begun = time.monotonic()
            folder = context.folder / f"{'_'.join(methods)}_{seed}"
            workflow.run(_of_run(base, methods, seed, steps), folder)
            rows = _rows(results.read(folder / "results.json"), seed)
            found["runs"] += [row | {"seconds": time.monotonic() - begun} for row in rows]
            report(found)
    return found


def _config(
    arrays: pathlib.Path, weights: pathlib.Path, image_size: int, *, tiny: bool
) -> ConfigDict:
    """What all runs share: the mini version of configs/tables/table10.py, with one student."""
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
        config.teacher.batch_size = config.student.batch_size = 8
    return config


def _of_run(base: ConfigDict, methods: Sequence[str], seed: int, steps: int) -> ConfigDict:
    config = base.copy_and_resolve_references()
    config.methods, config.seed = tuple(methods), seed
    config.teacher.steps, config.teacher.warmup_steps = (steps,), steps // 10
    student = STUDENT_STEPS * steps
    config.student.steps, config.student.warmup_steps = student, student // 10
    config.save_every = student  # Nothing goes on from here.
    return config


def _plan(speed: cost.Speed, seeds: int, seconds: float) -> tuple[tuple[tuple[str, ...], ...], int]:
    """The methods that there is time for, and the steps of a teacher."""
    for count in range(len(METHODS_OF_RUNS), 0, -1):
        chosen = METHODS_OF_RUNS[:count]
        each = seeds * sum(_seconds_per_step(speed, method) for run in chosen for method in run)
        steps = int(_TRAINING * seconds / each)
        if steps >= _LEAST:
            return chosen, min(steps, _MOST)
    return METHODS_OF_RUNS[:1], _LEAST


def _seconds_per_step(speed: cost.Speed, method: str) -> float:
    """Of a plain teacher's step, with those of its student that go with it; SAM takes two."""
    settings = METHODS[method]
    if settings is None or speed.teacher is None:
        raise ValueError(f"{method} has no teacher.")
    passes = 1 if settings.get("rho") == 0 else 2
    student = STUDENT_STEPS * (speed.answer.seconds + speed.student.seconds)
    return passes * speed.teacher.seconds + student


def _settings(config: ConfigDict) -> dict[str, Any]:
    """What the page says of the runs."""
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


def _rows(found: dict[str, Any] | None, seed: int) -> list[dict[str, Any]]:
    if found is None:
        raise RuntimeError("A run has left no results.json.")
    metric = found["data"]["metric"]
    return [
        {
            "seed": seed,
            "method": row["method"],
            "metric": metric,
            "student": row["student"]["test"][metric],
            "teacher": row["teacher"]["test"][metric],
        }
        for row in found["methods"]
    ]
