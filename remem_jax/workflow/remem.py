"""The main job: teachers by every method, their students, selection, test, report."""

import platform
from importlib import metadata
from typing import Any

import jax
from absl import logging

import remem_jax
from remem_jax import report
from remem_jax.settings import METHODS, deciding
from remem_jax.storage import results, workdir
from remem_jax.weights import catalog
from remem_jax.workflow import finetune, parts
from remem_jax.workflow.distill import Students, select

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def run_remem(run: parts.Run) -> None:
    """Trains, selects, tests and reports; goes on where an earlier start was stopped."""
    config = run.config
    params = finetune.check_init(run)
    init_digest = results.digest(catalog.locate(config.teacher.init))
    inputs = {"data": run.dataset.fingerprint, "teacher": init_digest}
    workdir.begin(run.workdir, deciding(config), inputs)
    students = Students(run)
    rows, teachers, groups, seconds = [], [], [], {}
    for method in config.methods:
        row, found = _method(run, students, method)
        rows.append(row)
        groups += found
        for group in found:
            seconds[group["part"]] = group["seconds"]
        if row["teachers"]:
            seconds[f"teachers/{method}"] = row.pop("teacher_seconds")
        teachers += [{"method": method, **record} for record in row.pop("teachers")]
    results.write(
        run.workdir / "results.json",
        {
            "format": 1,
            "title": f"ReMem on {run.dataset.title}",
            "config": deciding(config) | {"differs": list(config.differs)},
            "config_fingerprint": results.fingerprint(deciding(config)),
            "data": _data(run),
            "methods": rows,
            "teachers": teachers,
            "students": [
                {"method": group["method"], "teacher_step": group["teacher_step"], **student}
                for group in groups
                for student in group["students"]
            ],
            "models": {
                "teacher": f"{config.teacher.model} {config.teacher.variant}",
                "teacher_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "student": config.student.model,
                "student_parameters": students.parameters,
                "init": config.teacher.init,
                "init_digest": init_digest,
            },
            "seed": config.seed,
            "seconds": seconds,
            "versions": _versions(),
            "device": {
                "platform": jax.default_backend(),
                "kind": jax.devices()[0].device_kind,
                "count": jax.device_count(),
            },
        },
    )
    report.write(run.workdir)
    logging.info("Report: %s", run.workdir / "report.html")


def _method(
    run: parts.Run, students: Students, method: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row of the main table, and the groups of students behind it."""
    if METHODS[method] is None:
        teachers, groups = None, [students.from_scratch()]
    else:
        teachers = finetune.Teachers(run, method)
        teachers.finetune()
        groups = students.of(teachers)
    best = select(
        [{**student, "group": group} for group in groups for student in group["students"]],
        run.dataset.metric,
    )
    group = best.pop("group")
    chosen = {
        "teacher_step": group["teacher_step"],
        **{name: best[name] for name in ("student", "learning_rate", "temperature", "weight")},
    }
    tested = _test(run, students, method, teachers, group)
    logging.info(
        "%s: student %.2f %% on test, settings %s",
        method,
        100 * tested["student"][run.dataset.metric],
        chosen,
    )
    row: dict[str, Any] = {
        "method": method,
        "teacher_settings": None,
        "selected": chosen,
        "student": {"validation": best["validation"], "test": tested["student"]},
        "teacher": None,
        "teachers": [],
    }
    if teachers:
        names = ("rho", "mlp_weight", "attention_weight", "residual")
        (of_step,) = [r for r in teachers.records if r["step"] == group["teacher_step"]]
        row["teacher_settings"] = {name: teachers.settings[name] for name in names}
        row["teacher"] = {"validation": of_step["validation"], "test": tested["teacher"]}
        row["teachers"] = teachers.records
        row["teacher_seconds"] = teachers.seconds
    return row, groups


def _test(
    run: parts.Run,
    students: Students,
    method: str,
    teachers: finetune.Teachers | None,
    group: dict[str, Any],
) -> dict[str, Any]:
    """Metrics of what was selected, and of its teacher, on test; read once."""
    path = run.workdir / "selected" / f"{method}.json"
    before = results.read(path)
    if before is None:
        before = {"student": students.measure(students.best_of(group["part"]), "test")}
        if teachers:
            variables = teachers.variables(group["teacher_step"])
            before["teacher"] = teachers.measure(variables, "test")
        results.write(path, before)
    return before


def _data(run: parts.Run) -> dict[str, Any]:
    dataset, settings = run.dataset, run.config.data
    return {
        "name": settings.name,
        "title": dataset.title,
        "classes": len(dataset.classes),
        "class_names": list(dataset.classes),
        "metric": dataset.metric,
        "examples": {name: len(split.label) for name, split in dataset.splits.items()},
        "source_size": list(dataset.splits["train"].image.shape[1:3]),
        "image_size": settings.image_size,
        "official": dataset.official,
        "skipped": list(dataset.skipped),
        "fingerprint": dataset.fingerprint,
    }


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"remem_jax": remem_jax.__version__, "python": platform.python_version(), **found}
