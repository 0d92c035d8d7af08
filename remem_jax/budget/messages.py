"""What a run with a time budget says: its plan, each result, and how to go on."""

import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from remem_jax import display
from remem_jax.budget.plan import TEACHER, Speeds, Stage
from remem_jax.budget.progress import Clock
from remem_jax.methods import METHODS
from remem_jax.report import tables
from remem_jax.report.run import budget, recommendation
from remem_jax.storage import results as stored
from remem_jax.weights import catalog
from remem_jax.workflow import context, provenance
from remem_jax.workflow import stages as workflow_stages


def announce(
    run: context.Run,
    models: Mapping[str, Any],
    stages: Sequence[Stage],
    speeds: Speeds,
    clock: Clock,
    left_out: Mapping[str, float],
) -> None:
    """Logs in about five lines what the run will do, and until when.

    Args:
        run: The run.
        models: Teacher and student: see `pipeline.models_record`.
        stages: Stages that are left.
        speeds: Measured speeds.
        clock: The run's clock.
        left_out: Methods without time for a student, with the hours that would suffice.
    """
    for line in (
        _data(run),
        _models(run, models),
        *_stages(stages, clock),
        budget.without_time(left_out),
        _speeds(speeds),
    ):
        if line:
            logging.info("%s", line)


def _data(run: context.Run) -> str:
    dataset, names = run.dataset, ("train", "validation", "test")
    counts = [f"{len(dataset.splits[name].rows):,} {name}" for name in names]
    more = f", and {dataset.unlabelled.images:,} unlabelled" if dataset.unlabelled else ""
    held_out = "held out of train" if provenance.held_out(dataset) else "of the data set"
    odd = len(dataset.corrupt_images) + sum(dataset.skipped_files.values())
    remarks = f" {odd:,} files are skipped (see the report)." if odd else ""
    return (
        f"{dataset.title}: {', '.join(counts)} images of {len(dataset.classes):,} classes "
        f"(validation {held_out}){more}.{remarks}"
    )


def _models(run: context.Run, models: Mapping[str, Any]) -> str:
    config = run.config
    student = (
        f"Student: {models['student']}, {_millions(models['student_parameters'])} parameters, from "
        f"{_weights(config.student.init) or 'random weights'}; at {config.data.image_size} pixels"
    )
    if models["teacher"] is None:
        return f"{student}; no teacher."
    tuning = "" if models["tuning"] == "full" else f", {models['tuning']}"
    size = f"{_millions(models['teacher_parameters'])} parameters{tuning}"
    return f"{student}. Teacher: {_weights(config.teacher.init)}, {size}."


def _weights(init: str) -> str:
    """Returns the name of weights; of a path, the last part."""
    return init if catalog.is_name(init) else pathlib.PurePath(init).name


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M"


def _stages(stages: Sequence[Stage], clock: Clock) -> list[str]:
    if not stages:
        return [
            "Nothing is left to train in this time; more --hours would train the best student "
            "again, for longer."
        ]
    end = datetime.datetime.now() + datetime.timedelta(seconds=clock.left())
    listed = "; ".join(map(title, stages))
    return [
        f"Until about {end:%H:%M} ({tables.duration(clock.left())} from now): {listed}; then the "
        "tests and the report."
    ]


def show(stages: Sequence[Stage], clock: Clock) -> None:
    """Makes these the stages of the display, with the time left."""
    display.plan([workflow_stages.title(stage.name) for stage in stages])
    display.until(clock.left())


def title(stage: Stage) -> str:
    """Returns a phrase for a stage, such as "the student alone, 400 steps"."""
    method = METHODS[stage.method]
    steps = f"{stage.steps:,} steps"
    if stage.kind == TEACHER:
        return f"{method.title}: the teacher, {steps}"
    rates = len(stage.learning_rates)
    several = f", {rates} learning rates" if rates > 1 else ""
    longer = ", for longer" if stage.variant.startswith("longer") else ""
    return f"{method.title}: the student{several}{longer}, {steps}"


def _speeds(speeds: Speeds) -> str:
    teacher = f", of a teacher {speeds.teacher:.2g} s" if speeds.teacher else ""
    return f"Measured on this device: a step of a student takes {speeds.student:.2g} s{teacher}."


def finished(stage: Stage, metric: str, clock: Clock) -> None:
    """Logs the result of a stage."""
    value = "diverged" if stage.value is None else f"{tables.percent(stage.value)} % on validation"
    logging.info(
        "%s: %s (%s), in %s; %s left for the run.",
        title(stage),
        value,
        tables.METRIC_TITLES[metric],
        tables.duration(stage.seconds),
        tables.duration(max(clock.left(), 0.0)),
    )


def conclude(folder: pathlib.Path, clock: Clock) -> None:
    """Logs the model of a finished run to use, and the commands that come next."""
    results = stored.read(folder / "results.json") or {}
    advice = recommendation.recommend(results, folder)
    for line in (
        f"{advice.sentence} {advice.reasons}",
        *([f"Its file is {advice.file}."] if advice.file else []),
        f"Done in {tables.duration(clock.spent())}. The report is {folder / 'report.html'}. Next:",
        *(f"  {command}" for command in advice.commands),
    ):
        logging.info("%s", line)
