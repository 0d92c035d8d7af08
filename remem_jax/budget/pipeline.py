"""The workflow of `remem distil`: plans, trains, plans again after every stage, tests, reports."""

import math
import pathlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from remem_jax import display, platforms, settings, workflow
from remem_jax.budget import facts, measuring, messages, plan, progress, rules
from remem_jax.budget.plan import STUDENTS, TEACHER, Speeds, Stage
from remem_jax.budget.progress import Clock, Record
from remem_jax.checks import above, require
from remem_jax.data.custom import folders
from remem_jax.methods import METHODS
from remem_jax.settings import located, workflows
from remem_jax.storage import workdir
from remem_jax.train import loop
from remem_jax.workflow import ascent, context, precision, provenance
from remem_jax.workflow.remem import distill, finetune, outcome, pipeline, student_setup

_OURS = ("budget.hours",)  # Settings that only the budget has.


def run(
    config: ConfigDict,
    directory: pathlib.Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    given: Collection[str] = (),
) -> None:
    """Makes a student from images within a time; resumes if the folder has a run.

    Args:
        config: Settings as of `configs/own.py`.
        directory: Folder of the run.
        stopping: Called after every step; once it returns True, the state is saved and the run
            stops.
        given: Names of the settings that the user set; those without effect are rejected.

    Raises:
        SettingError: If a setting, the data, the weights or the folder cannot be used.
        StoppedError: If `stopping` returned True.
    """
    began = time.monotonic()
    check(config)
    images = config.data
    folders.require_outside(images.name, images.path, directory, unlabelled=images.unlabelled)
    found = facts.of_source(context.with_unlabelled(context.open_source(images), images))
    device_mesh = workflow.make_mesh()
    record = progress.read(directory) or Record(_planned(config, found, device_mesh))
    filled = rules.filled(config, record.settings)
    workflows.check(filled, [name for name in given if name not in _OURS])
    settings.check_mesh(filled, device_mesh)
    filled = precision.resolved(filled, device_mesh, directory)
    filled = ascent.resolved(filled, device_mesh, directory)
    with workdir.claimed(directory, settings.plain(filled)):
        clock = Clock(directory, record, hours=config.budget.hours, began=began)

        def stops() -> bool:
            clock.tick()
            return stopping()

        with (
            workflow.tracked(filled, directory),
            workflow.opened(filled, directory, device_mesh, stops) as opened_run,
        ):
            _Budgeted(opened_run._replace(deadline=began), config, found, clock).run()


def check(config: ConfigDict) -> None:
    """Raises `SettingError` for what must hold before the images are opened."""
    above("config.budget.hours", config.budget.hours, 0)
    require(
        not config.teacher.probe_steps,
        "config.teacher.probe_steps has no place in a time budget, which plans the steps of a "
        "teacher: set it to 0, or run another --config, such as configs/remem.py.",
    )
    require(
        not config.data.refit,
        "config.data.refit has no place in a time budget: leave it out, or run another --config, "
        "such as configs/remem.py, with the settings in the report.",
    )
    require(
        jax.process_count() == 1,
        "A run with a time budget has one process for all devices of a machine: leave out "
        "--processes, or use another --config for several.",
    )


def _planned(
    config: ConfigDict, found: facts.Facts, device_mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """Returns the settings that the rules choose, by name."""
    device = device_mesh.devices.flat[0]
    dtype = platforms.compute_dtype(list(device_mesh.devices.flat))
    rate = facts.device_rate(device, dtype) * device_mesh.size
    return rules.choose(config, found, rules.Device(platforms.of(device), rate))


class _Budgeted:
    """A run with a time budget in progress."""

    def __init__(
        self, run: context.Run, asked: ConfigDict, found: facts.Facts, clock: Clock
    ) -> None:
        self._run, self._asked, self._found, self._clock = run, asked, found, clock
        has_teacher = any(METHODS[method].has_teacher for method in run.config.methods)
        self._pretrained = finetune.read_pretrained(run) if has_teacher else None
        self._setup = student_setup.make(run, self._pretrained)
        self._limits = rules.limits(
            run.config,
            asked,
            images=len(run.dataset.splits["train"].rows),
            unlabelled=run.dataset.unlabelled.images if run.dataset.unlabelled else 0,
        )
        self._teachers: dict[str, finetune.Teachers] = {}
        self._groups: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> None:
        """Trains the planned stages, plans the rest after each of them, tests and reports."""
        run, clock = self._run, self._clock
        speeds = clock.record.speeds
        if speeds is None:
            with display.stage("Measurement of the speed", None):
                speeds = measuring.measure(run, self._pretrained, self._setup)
            self._set_steps(self._plan(speeds))
            clock.update(speeds=speeds)
        models = pipeline.models_record(run, self._pretrained, self._setup)
        digests = {"teacher": self._pretrained, "student": self._setup.initial}
        identity = provenance.identity(
            self._run, {name: each.digest for name, each in digests.items() if each}
        )
        workdir.begin(run.workdir, located(self._run.config), identity)
        for stage in clock.record.stages:
            self._train(stage, 0.0, speeds)  # Reads what was trained before.
        stages = self._plan(speeds)
        left_out = self._left_out(stages, speeds)
        messages.announce(self._run, models, stages, speeds, clock, left_out)
        messages.show((*clock.record.stages, *stages), clock)
        try:
            while stages:
                speeds = self._advance(stages, speeds)
                stages = self._plan(speeds)
                messages.show(stages, clock)
        finally:
            clock.save()
        self._finish(identity, models, speeds)

    def _plan(self, speeds: Speeds) -> tuple[Stage, ...]:
        stages = self._clock.record.stages
        return plan.remaining(self._current_limits(), speeds, self._clock.left(), stages)

    def _current_limits(self) -> plan.Limits:
        """Returns the limits without the methods that failed."""
        failed = self._clock.record.failed
        methods = tuple(name for name in self._limits.methods if name not in failed)
        return self._limits._replace(methods=methods)

    def _left_out(self, stages: Sequence[Stage], speeds: Speeds) -> dict[str, float]:
        """Returns the methods without time for a student, with hours of the run that suffice."""
        limits, done = self._current_limits(), self._clock.record.stages
        planned = plan.methods_of(*done, *stages)
        needed = {
            method: plan.seconds_for(method, limits, speeds, done)
            for method in limits.methods
            if method not in planned
        }
        spent = self._clock.spent()
        # Rounded up to three minutes, since speeds change.
        return {
            method: math.ceil((spent + seconds) / 180) / 20
            for method, seconds in needed.items()
            if seconds is not None
        }

    def _set_steps(self, stages: tuple[Stage, ...]) -> None:
        """Makes the numbers of steps of the first plan those of the config."""
        students = [stage.steps for stage in stages if stage.kind == STUDENTS and not stage.variant]
        teachers = [stage.steps for stage in stages if stage.kind == TEACHER]
        steps = rules.steps(self._asked, students[0], max(teachers, default=students[0]))
        planned = {**self._clock.record.settings, **steps}
        self._clock.update(settings=planned)
        config = self._run.config.copy_and_resolve_references()
        config.update_from_flattened_dict(steps)
        self._run = self._run._replace(config=config)

    def _advance(self, stages: Sequence[Stage], speeds: Speeds) -> Speeds:
        """Trains the first stage and records it; returns the speeds that were measured in it."""
        stage, began, record = stages[0], time.monotonic(), self._clock.record
        seconds = plan.seconds_of_first(stages, speeds, self._clock.left(), record.stages)
        try:
            done = self._train(stage, seconds, speeds)
            done = done._replace(seconds=time.monotonic() - began)
        except loop.NonFiniteLossError as error:
            if not error.of_rate:
                raise
            logging.error("%s has no result. %s", METHODS[stage.method].title, error)
            self._clock.update(failed={**record.failed, stage.method: str(error)})
            return speeds
        speeds = measuring.remeasured(stage, speeds, self._run.workdir, record.stages)
        self._clock.update(stages=(*record.stages, done), speeds=speeds)
        messages.finished(done, self._run.dataset.metric, self._clock)
        return speeds

    def _train(self, stage: Stage, seconds: float, speeds: Speeds) -> Stage:
        """Trains a stage in some seconds, or reads it; returns it with its steps and value."""
        stage = self._with_choice(stage)
        config = self._run.config.copy_and_resolve_references()
        rules.set_stage(config, stage, plan.step(stage, speeds), self._asked)
        run = self._run._replace(
            config=config,
            deadline=time.monotonic() + seconds,
            most_steps=self._most_steps(stage),
        )
        metric, method = run.dataset.metric, stage.method
        teachers = pipeline.train_teachers(run, self._pretrained, method)
        if teachers:
            self._teachers[method] = teachers
        if teachers and stage.kind == TEACHER:
            records = teachers.records
        else:
            if teachers and stage.teacher_step:
                kept = [each for each in teachers.records if each["step"] == stage.teacher_step]
                teachers = teachers._replace(records=kept)
            groups = pipeline.train_students(run, self._setup, method, teachers, stage.name)
            self._groups.setdefault(method, []).extend(groups)
            records = [student for group in groups for student in group["students"]]
        values = [record["validation"][metric] for record in records if not _diverged(record)]
        steps = max(int(record.get("steps") or record["step"]) for record in records)
        return stage._replace(steps=steps, value=max(values, default=None))

    def _most_steps(self, stage: Stage) -> int:
        """Returns the steps that a stage may have if they are faster than planned; 0: no more."""
        limits = self._limits
        fixed = limits.student_steps or self._run.config.student.store_outputs
        if stage.kind == TEACHER or stage.variant == plan.TRIAL or fixed:
            return 0
        if stage.variant:
            return plan.MOST * limits.most_steps
        return plan.most_steps(limits, self._clock.record.stages)

    def _with_choice(self, stage: Stage) -> Stage:
        """Fills in the learning rate and the teacher of a stage that goes on from another one."""
        if stage.kind == TEACHER or stage.learning_rates:
            return stage
        students = outcome.candidates(self._groups[stage.method])
        best = distill.select(students, self._run.dataset.metric, split="validation")[0]
        return stage._replace(
            learning_rates=(best["learning_rate"],), teacher_step=best["teacher_step"] or 0
        )

    def _finish(self, identity: Any, models: dict[str, Any], speeds: Speeds) -> None:
        """Tests the selected models, once, and writes the results and the report."""
        run, record = self._run, self._clock.record
        methods = [name for name in self._limits.methods if name in self._groups]
        outcomes = [
            outcome.conclude(
                run, self._setup, method, self._teachers.get(method), self._groups[method]
            )
            for method in methods
            if method not in record.failed
        ]
        failed = [{"method": method, "reason": reason} for method, reason in record.failed.items()]
        results = pipeline.results_record(run, identity, outcomes, models)
        budget = {
            "hours": self._asked.budget.hours,
            "stages": [stage._asdict() for stage in record.stages],
            "seconds": self._clock.spent(),
            "left_out": self._left_out((), speeds),
        }
        pipeline.write_results(run, {**results, "failed": failed, "budget": budget}, outcomes)
        messages.conclude(run.workdir, self._clock)
        self._clock.save()


def _diverged(record: dict[str, Any]) -> bool:
    return bool(record.get("diverged"))
