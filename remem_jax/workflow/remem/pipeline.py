"""The ReMem workflow: teachers of every method, their students, selection, test, report."""

from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from remem_jax import display, mesh, paired, report
from remem_jax.methods import METHODS
from remem_jax.records import Params
from remem_jax.report import tables
from remem_jax.settings import located, plain
from remem_jax.storage import cleaning, results, workdir
from remem_jax.storage.identity import Identity, described
from remem_jax.train import loop
from remem_jax.weights import teacher_sources
from remem_jax.workflow import advice, context, provenance, stages
from remem_jax.workflow.information import measurement
from remem_jax.workflow.remem import (
    deviations,
    distill,
    file_list,
    finetune,
    latency,
    mistakes,
    outcome,
    plan_only,
    refit,
    shared_teachers,
    student_setup,
    teacher_measures,
    teacher_training,
)


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


def write_results(
    run: context.Run, record: dict[str, Any], outcomes: Sequence[outcome.Outcome]
) -> None:
    """Writes results.json, the list of files with the predictions, mistakes, and the report."""
    if not mesh.is_writer():
        return
    predictions = {each.row["method"]: each.predictions for each in outcomes}
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
) -> tuple[list[outcome.Outcome], list[dict[str, str]]]:
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
    names = (
        *("teacher", "teacher_parameters", "teacher_trainable", "teacher_gelu"),
        *("tuning", "init", "init_digest", "teacher_weights"),
    )
    if pretrained is None:
        return dict.fromkeys(names)
    start = teacher_training.start(run, pretrained, "finetune")
    if run.config.information.seeds:
        measurement.require_measurable(run, run.config.data.image_size // start.model.size.pixels)
    settings, trainable = run.config.teacher, _size(start.trainable)
    model = f"{settings.model} {settings.variant}".strip()
    parameters = trainable + _size(start.frozen)
    gelu = start.model.gelu
    weights = teacher_sources.record(
        pretrained.source, settings.init, pretrained.digest, start.model.normalisation
    )
    values = (model, parameters, trainable, gelu, settings.tuning, settings.init, pretrained.digest)
    return dict(zip(names, (*values, weights), strict=True))


def _outcome(
    run: context.Run,
    pretrained: finetune.Pretrained | None,
    setup: student_setup.StudentSetup,
    method: str,
) -> outcome.Outcome:
    """Trains a method's teachers and students, selects, tests, and trains these anew if asked."""
    teachers = train_teachers(run, pretrained, method)
    groups = train_students(run, setup, method, teachers)
    concluded = outcome.conclude(run, setup, method, teachers, groups)
    if run.config.data.refit:
        record = refit.of_method(run, setup, pretrained, concluded.row)
        concluded.seconds.update(record.pop("seconds"))
        concluded.row["refit"] = record
    return concluded


def train_teachers(
    run: context.Run, pretrained: finetune.Pretrained | None, method: str
) -> finetune.Teachers | None:
    """Trains the teachers of a method, or reads them; None for a method without a teacher."""
    if pretrained is None or not METHODS[method].has_teacher:
        return None
    stage = f"teachers/{method}"
    with advice.on_out_of_memory(stage), shared_teachers.home(run, stage) as home:
        teachers = finetune.finetune(home, pretrained, method)
        return _with_flatness(home, teachers)


def _with_flatness(run: context.Run, teachers: finetune.Teachers) -> finetune.Teachers:
    """Adds the "flatness" of each teacher to its record, if it is to be measured."""
    if not run.config.flatness.radius:
        return teachers
    measured = [
        teacher_measures.flatness_of(
            run,
            teachers.measure,
            teachers.load(record["step"]),
            teachers.folder / teachers.stage / f"step_{record['step']}",
        )
        for record in teachers.records
    ]
    records = [
        {**record, "flatness": of_record}
        for record, of_record in zip(teachers.records, measured, strict=True)
    ]
    return teachers._replace(records=records)


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


def results_record(
    run: context.Run,
    identity: Identity,
    outcomes: Sequence[outcome.Outcome],
    models: dict[str, Any],
) -> dict[str, Any]:
    """Returns the contents of results.json; docs/results.md describes the fields."""
    return {
        "format": report.FORMAT,
        "title": f"ReMem on {run.dataset.title}",
        "config": described(plain(run.config))
        | {
            "differs": [
                *run.config.differs,
                *deviations.sentences(run, [each.row for each in outcomes]),
            ]
        },
        "config_fingerprint": results.fingerprint(identity.settings),
        "identity": {"key": identity.key, **identity.inputs, "code": identity.code},
        "data": {
            **provenance.data(run),
            "test_labels": paired.pack(run.dataset.splits["test"].labels),
        },
        "methods": [each.row for each in outcomes],
        "teachers": [record for each in outcomes for record in each.teachers],
        "students": [record for each in outcomes for record in each.students],
        "models": models,
        "seed": run.config.seed,
        "seconds": {stage: time for each in outcomes for stage, time in each.seconds.items()},
        "versions": provenance.versions(),
        "device": provenance.device(),
    }


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
