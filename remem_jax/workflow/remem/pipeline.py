"""The ReMem workflow: teachers of every method, their students, selection, test, report."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from remem_jax import display, mesh, paired, report
from remem_jax.methods import METHODS
from remem_jax.records import Hyperparameters, Params
from remem_jax.report import tables
from remem_jax.settings import located, plain
from remem_jax.storage import cleaning, results, workdir
from remem_jax.storage.identity import Identity, described
from remem_jax.train import loop
from remem_jax.workflow import advice, context, memory_plan, provenance, stages
from remem_jax.workflow.information import measurement
from remem_jax.workflow.remem import (
    deviations,
    distill,
    file_list,
    final_evaluation,
    finetune,
    latency,
    mistakes,
    plan_only,
    student_setup,
    teacher_training,
)


class Outcome(NamedTuple):
    """The result of a method, as in `results.json`.

    Attributes:
        row: Row of the main table: the selected setting and its metrics.
        teachers: All teacher checkpoints, with validation metrics.
        students: All students, with validation metrics.
        seconds: Seconds of each stage of training.
        predictions: Predictions of its selected student, by split.
    """

    row: dict[str, Any]
    teachers: list[dict[str, Any]]
    students: list[dict[str, Any]]
    seconds: dict[str, float]
    predictions: dict[str, np.ndarray]


def run_remem(run: context.Run) -> None:
    """Trains, selects, tests and reports; resumes an interrupted run."""
    config = run.config
    needs_teacher = any(METHODS[method].has_teacher for method in config.methods)
    pretrained = finetune.read_pretrained(run) if needs_teacher else None
    setup = student_setup.make(run, pretrained)
    initial = {"teacher": pretrained, "student": setup.initial}
    identity = provenance.identity(
        run, {name: each.digest for name, each in initial.items() if each}
    )
    if config.plan_only:
        plan_only.show(run, pretrained, setup)
        return
    used = models_record(run, pretrained, setup)
    workdir.begin(run.workdir, located(config), identity)
    outcomes, failed = _outcomes(run, pretrained, setup)
    write_results(run, results_record(run, identity, outcomes, used) | {"failed": failed}, outcomes)
    if failed:
        reasons = " ".join(
            f"{METHODS[failure['method']].title} has no result. {failure['reason']}"
            for failure in failed
        )
        raise loop.NonFiniteLossError(
            f"{reasons} The report covers the other methods: {run.workdir / 'report.html'}"
        )


def models_record(
    run: context.Run, pretrained: finetune.Pretrained | None, setup: student_setup.StudentSetup
) -> dict[str, Any]:
    """Describes the teachers and students of a run.

    Raises:
        SettingError: If the information of the teachers cannot be measured.
    """
    return {
        **_teacher(run, pretrained),
        "student": run.config.student.model,
        "student_parameters": _size(jax.eval_shape(lambda: setup.first(0)["params"])),
        "student_init": setup.initial and dict(setup.initial.record),
        "student_architecture": dict(setup.architecture),
        "student_normalisation": setup.normalisation._asdict(),
    }


def write_results(run: context.Run, record: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Writes results.json, the list of files with the predictions, mistakes, and the report."""
    if not mesh.is_writer():
        return
    predictions = {outcome.row["method"]: outcome.predictions for outcome in outcomes}
    file_list.write(run.workdir / "selected" / "split.csv", run.dataset, predictions)
    best = tables.best_on_validation(record["methods"], run.dataset.metric)["method"]
    mistakes.write(run.workdir, best, run.dataset.splits["test"])
    record, path = latency.with_inference(run.workdir, record), run.workdir / "results.json"
    results.write(path, record)
    results.write(path, record | {"disk": cleaning.usage(run.workdir)})
    report.write(run.workdir)
    logging.info("Report: %s", run.workdir / "report.html")


def _outcomes(
    run: context.Run, pretrained: finetune.Pretrained | None, setup: student_setup.StudentSetup
) -> tuple[list[Outcome], list[dict[str, str]]]:
    """Returns the result of each method, and "method" and "reason" of each that failed.

    Raises:
        NonFiniteLossError: If all methods diverged, or if a lower learning rate cannot help.
    """
    outcomes, failed = [], []
    display.plan(stages.planned(run.config, run.config.methods))
    for i, method in enumerate(run.config.methods):
        try:
            outcomes.append(_outcome(run, pretrained, setup, method))
        except loop.NonFiniteLossError as error:
            if not error.of_rate or len(failed) + 1 == len(run.config.methods):
                raise
            failed.append({"method": method, "reason": str(error)})
            logging.error("%s has no result. %s", METHODS[method].title, error)
            display.plan(stages.planned(run.config, run.config.methods[i + 1 :]))
    return outcomes, failed


def _teacher(run: context.Run, pretrained: finetune.Pretrained | None) -> dict[str, Any]:
    """Describes the initial model of the teachers; all None if no method has a teacher.

    Raises:
        SettingError: If their information cannot be measured (checked before training).
    """
    names = ("teacher", "teacher_parameters", "teacher_trainable", "tuning", "init", "init_digest")
    if pretrained is None:
        return dict.fromkeys(names)
    start = teacher_training.start(run, pretrained, "finetune")
    if run.config.information.seeds:
        measurement.require_measurable(run, run.config.data.image_size // start.model.size.pixels)
    settings, trainable = run.config.teacher, _size(start.trainable)
    model = f"{settings.model} {settings.variant}".strip()
    parameters = trainable + _size(start.frozen)
    values = (model, parameters, trainable, settings.tuning, settings.init, pretrained.digest)
    return dict(zip(names, values, strict=True))


def _outcome(
    run: context.Run,
    pretrained: finetune.Pretrained | None,
    setup: student_setup.StudentSetup,
    method: str,
) -> Outcome:
    """Trains a method's teachers and students, selects on validation, then tests."""
    teachers = train_teachers(run, pretrained, method)
    groups = train_students(run, setup, method, teachers)
    return conclude(run, setup, method, teachers, groups)


def train_teachers(
    run: context.Run, pretrained: finetune.Pretrained | None, method: str
) -> finetune.Teachers | None:
    """Trains the teachers of a method, or reads them; None for a method without a teacher."""
    if pretrained is None or not METHODS[method].has_teacher:
        return None
    with advice.on_out_of_memory(f"teachers/{method}"):
        return finetune.finetune(run, pretrained, method)


def train_students(
    run: context.Run,
    setup: student_setup.StudentSetup,
    method: str,
    teachers: finetune.Teachers | None,
    stage: str = "",
) -> list[dict[str, Any]]:
    """Trains the students of a method, or reads their results; see `distill`.

    Args:
        run: The run.
        setup: Its students.
        method: The method.
        teachers: Its teachers; None for a method without a teacher.
        stage: Name of the stage; empty is `students/METHOD`.
    """
    with advice.on_out_of_memory(stage or f"students/{method}"):
        if teachers:
            return distill.from_teachers(run, setup, teachers, stage)
        return distill.without_teacher(run, setup, method, stage)


def conclude(
    run: context.Run,
    setup: student_setup.StudentSetup,
    method: str,
    teachers: finetune.Teachers | None,
    groups: Sequence[dict[str, Any]],
) -> Outcome:
    """Selects a method's student on validation, and tests it and its teacher, once.

    Args:
        run: The run.
        setup: Its students.
        method: The method.
        teachers: Its teachers; None for a method without a teacher.
        groups: Return values of `train_students`.
    """
    seconds = {group["part"]: group["seconds"] for group in groups}
    with advice.on_out_of_memory(f"information/{method}"):
        measured = _information(run, teachers, seconds)
    metric = run.dataset.metric
    students = candidates(groups)
    chosen = sorted(
        distill.select(students, metric), key=lambda student: -student["validation"][metric]
    )
    best, tested = chosen[0], final_evaluation.test(run, setup, method, teachers, chosen)
    distill.discard(run, groups)
    row: dict[str, Any] = {
        "method": method,
        "teacher_settings": None,
        "teacher_part": None,
        "teacher_lost": None,
        "selected": _setting(best),
        "group": {"part": best["group"]["part"], "member": best["member"]},
        "student": {
            "validation": _means([student["validation"] for student in chosen]),
            "test": _means(tested["students"]),
        },
        "seeds": [
            {
                "seed": student["seed"],
                "student": student["student"],
                "validation": student["validation"],
                "test": test,
            }
            for student, test in zip(chosen, tested["students"], strict=True)
        ],
        "teacher": None,
        "plan": memory_plan.read(run, f"teachers/{method}"),
        "test_correct": final_evaluation.correct(run, tested),
        "on_test": _chosen_on_test(
            run, teachers, students, (best["teacher_step"], tested["teacher"])
        ),
    }
    share = row["student"]["test"][metric]
    display.result(stages.model(f"students/{method}"), share, "test")
    logging.info(
        "%s: the student has %.2f %% on test (%s).",
        METHODS[method].title,
        100 * share,
        _described(row["selected"]),
    )
    if teachers:
        display.result(stages.model(f"teachers/{method}"), tested["teacher"][metric], "test")
        seconds[teachers.stage] = teachers.seconds
        names = ("rho", "mlp_weight", "attention_weight", "residual", "learning_rate")
        (record,) = [r for r in teachers.records if r["step"] == best["teacher_step"]]
        row["teacher_settings"] = {name: teachers.settings[name] for name in names}
        row["teacher_part"], row["teacher_lost"] = teachers.stage, teachers.lost
        row["teacher"] = {"validation": record["validation"], "test": tested["teacher"]}
    return Outcome(
        row,
        [{"method": method, **record, **information} for record, information in measured],
        [
            {"method": method, "teacher_step": group["teacher_step"], **student}
            for group in groups
            for student in group["students"]
        ],
        seconds,
        final_evaluation.predictions(tested),
    )


def candidates(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the students of several groups, each with its place in them, for `distill.select`."""
    return [
        {**student, "teacher_step": group["teacher_step"], "group": group, "member": member}
        for group in groups
        for member, student in enumerate(group["students"])
    ]


def _information(
    run: context.Run, teachers: finetune.Teachers | None, seconds: dict[str, float]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns each teacher's record with its information, if that is measured."""
    if not teachers:
        return []
    if not run.config.information.seeds:
        return [(record, {}) for record in teachers.records]
    measured = measurement.of_teachers(run, teachers)
    seconds[measured["part"]] = measured["seconds"]
    return [
        (record, {"information": information})
        for record, information in zip(teachers.records, measured["teachers"], strict=True)
    ]


def _setting(student: dict[str, Any]) -> dict[str, Any]:
    return {
        name: student[name]
        for name in ("teacher_step", "student", "loss", "steps", *Hyperparameters._fields)
    }


def _described(setting: dict[str, Any]) -> str:
    """Describes a setting, without what its loss does not use."""
    texts = {
        "teacher_step": "teacher of step {}",
        "loss": "loss {}",
        "learning_rate": "learning rate {:g}",
        "temperature": "temperature {:g}",
        "weight": "weight {:g}",
    }
    return ", ".join(
        text.format(setting[name]) for name, text in texts.items() if setting[name] is not None
    )


def _means(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages numbers over seeds; other values are those of the first seed."""
    numbers = {
        name: statistics.fmean(values[name] for values in metrics)
        for name, value in metrics[0].items()
        if isinstance(value, float | int)
    }
    return metrics[0] | numbers


def _chosen_on_test(
    run: context.Run,
    teachers: finetune.Teachers | None,
    candidates: Sequence[dict[str, Any]],
    tested_teacher: tuple[int | None, dict[str, Any] | None],
) -> dict[str, Any] | None:
    """Returns the setting that is best on test, if `config.choose_on_test` asks for it.

    `known` is the step of the teacher that was tested already, and its metrics.
    """
    if not run.config.choose_on_test:
        return None
    chosen = distill.select(candidates, run.dataset.metric, split="test")
    step, teacher = chosen[0]["teacher_step"], tested_teacher[1]
    if teachers and step != tested_teacher[0]:
        teacher = final_evaluation.test_teacher(run, teachers, step)
    return {
        "selected": _setting(chosen[0]),
        "student": {
            split: _means([student[split] for student in chosen])
            for split in ("validation", "test")
        },
        "seeds": [{"seed": student["seed"], "test": student["test"]} for student in chosen],
        "teacher": teacher and {"test": teacher},
    }


def results_record(
    run: context.Run, identity: Identity, outcomes: Sequence[Outcome], models: dict[str, Any]
) -> dict[str, Any]:
    """Returns the contents of results.json; docs/results.md describes the fields."""
    return {
        "format": report.FORMAT,
        "title": f"ReMem on {run.dataset.title}",
        "config": described(plain(run.config))
        | {
            "differs": [
                *run.config.differs,
                *deviations.sentences(run, [outcome.row for outcome in outcomes]),
            ]
        },
        "config_fingerprint": results.fingerprint(identity.settings),
        "identity": {"key": identity.key, **identity.inputs, "code": identity.code},
        "data": {
            **provenance.data(run),
            "test_labels": paired.pack(run.dataset.splits["test"].labels),
        },
        "methods": [outcome.row for outcome in outcomes],
        "teachers": [record for outcome in outcomes for record in outcome.teachers],
        "students": [record for outcome in outcomes for record in outcome.students],
        "models": models,
        "seed": run.config.seed,
        "seconds": {stage: time for outcome in outcomes for stage, time in outcome.seconds.items()},
        "versions": provenance.versions(),
        "device": provenance.device(),
    }


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
