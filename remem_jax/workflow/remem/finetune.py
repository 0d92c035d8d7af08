"""Fine-tunes a pretrained ViT with a method; each of its checkpoints is a teacher."""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax.models import encoder, vit
from remem_jax.records import Batch, Metrics, TeacherApply, Variables
from remem_jax.storage import checkpoints, results
from remem_jax.train import loop, state
from remem_jax.workflow import context, memory_plan, stages, training
from remem_jax.workflow.initial_checkpoints import Pretrained
from remem_jax.workflow.remem import retries, teacher_measures, teacher_training


class Teachers(NamedTuple):
    """The teachers of one method: the checkpoints of one fine-tuning.

    Attributes:
        method: Name of the method, in `METHODS`.
        stage: Name of the stage; that of the retry if the first attempt failed.
        settings: `config.teacher`, as changed by the method.
        apply: A teacher in evaluation mode, with the outputs that the students' losses need.
        patches: A teacher in evaluation mode, with its patch tokens, to measure information.
        shapes: Shapes of its variables.
        facts: Everything but the variables that determines its outputs.
        load: Loads the variables of the checkpoint at a step.
        measure: Evaluates a teacher on a split.
        records: For each checkpoint, "step", "validation" and, if that selects, "test".
        lost: Steps of `config.teacher.steps` without a checkpoint, and why; see `retries.train`.
        seconds: Seconds of training.
        model: Their network.
        saved: How they are saved.
        folder: Folder of the stages: that of the run, or one that trials of a study share.
    """

    method: str
    stage: str
    settings: ConfigDict
    apply: TeacherApply
    patches: TeacherApply
    shapes: Variables
    facts: dict[str, Any]
    load: Callable[[int], Variables]
    measure: context.Measure
    records: list[dict[str, Any]]
    lost: dict[str, Any] | None
    seconds: float
    model: vit.VisionTransformer
    saved: teacher_training.Saved
    folder: pathlib.Path

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record of the checkpoint at a step."""
        (found,) = [record for record in self.records if record["step"] == step]
        return found


class Refitted(NamedTuple):
    """A selected teacher that is trained anew on train and validation together.

    Attributes:
        step: Step of the selected checkpoint, at which training ends.
        learning_rate: Its peak learning rate, which may be that of a retry.
    """

    step: int
    learning_rate: float


def read_pretrained(run: context.Run) -> Pretrained:
    """Returns the pretrained weights, which were read and checked before the data."""
    return run.preloaded.take(run.config)


def finetune(
    run: context.Run, pretrained: Pretrained, method: str, *, refitted: Refitted | None = None
) -> Teachers:
    """Trains the teachers of a method, or reads them if they are finished.

    If training diverges, the checkpoints before that are the teachers; see `retries`.

    Args:
        run: The run.
        pretrained: The pretrained weights.
        method: The method.
        refitted: The teacher to train anew; None trains all teachers of the method.

    Raises:
        NonFiniteLossError: If there is no such checkpoint.
    """
    stage = f"teachers/{method}"
    settings = teacher_training.settings_of(run.config, method)
    saved_steps = tuple(settings.steps)
    if refitted:
        stage, saved_steps = f"{stage}/{stages.REFIT}", (refitted.step,)
        settings.learning_rate = refitted.learning_rate
    folder = run.workdir / stage
    start = teacher_training.start(run, pretrained, method)
    measure = context.make_measure(
        run, teacher_training.evaluation_apply(start), settings.batch_size
    )
    shapes = run.shapes(start.trainable)
    unstack = jax.jit(encoder.unstack, out_shardings=run.shardings(start.trainable))

    def milestone(stage: str, step: int, trained: state.TrainState) -> None:
        params = trained.variables["params"]  # Averaged, with config.teacher.ema.
        params = unstack(params) if start.stacks else params
        evaluate = functools.partial(measure, start.variables(params), logits=True)
        record = _evaluated(run, stage, step, evaluate)
        folder = run.workdir / stage / f"step_{step}"
        checkpoints.save_tree(folder / "params", params)
        results.write_for_all(folder / "record.json", record)

    def train_attempt(attempt: retries.Attempt) -> float:
        settings.learning_rate = attempt.learning_rate
        save = functools.partial(milestone, attempt.stage)
        return _train(run, attempt.stage, settings, start, saved_steps, save)

    result = results.read_for_all(folder / "result.json")
    if result is None:
        plan = memory_plan.planned(run, teacher_training.planned_step(run, method, start))
        start = start._replace(plan=plan)
        learning_rate = settings.learning_rate
        result = retries.train(
            run, stage, learning_rate=learning_rate, steps=saved_steps, once=train_attempt
        )
        results.write_for_all(folder / "result.json", result)
        retries.clean(run, result, stage)
    settings.learning_rate = result["learning_rate"]

    def load(step: int) -> Variables:
        folder = run.workdir / result["part"] / f"step_{step}" / "params"
        return start.teacher(checkpoints.load_tree(folder, shapes))

    merged = jax.eval_shape(start.teacher, start.trainable)
    facts = {"model": " ".join(repr(start.model).split()), "tuning": settings.tuning}
    return Teachers(
        method,
        result["part"],
        settings,
        teacher_training.teacher_apply(run, start),
        teacher_training.patches_apply(start),
        merged,
        facts,
        load,
        measure,
        result["teachers"],
        result["lost"],
        result["seconds"],
        start.model,
        start.saved,
        run.workdir,
    )


def _evaluated(
    run: context.Run, stage: str, step: int, measure: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the record of a checkpoint, evaluated on the split that selects, if there is one.

    Args:
        run: The run.
        stage: Name of the stage.
        step: Step of the checkpoint.
        measure: Evaluates it on a split, with "logits".
    """
    record: dict[str, Any] = {"step": step, "validation": None, "calibration": None}
    if run.dataset.selection:
        metrics = measure(run.dataset.selection)
        logits = metrics.pop("logits")
        _require_finite(step, metrics, run.dataset.selection)
        training.log_selection(run, stage, step, metrics[run.dataset.metric])
        record[run.dataset.selection] = metrics
        if run.dataset.selection == teacher_measures.VALIDATION:
            record["calibration"] = teacher_measures.calibrated(run, logits)
    return record


def _require_finite(at: int, metrics: dict[str, Any], split: str) -> None:
    """Raises if the loss on a split is not finite, which finite parameters do not rule out."""
    if not np.isfinite(metrics["loss"]):
        text = f"the loss on {split} is {metrics['loss']} at step {at}"
        raise loop.NonFiniteLossError(text, step=at)


def _train(
    run: context.Run,
    stage: str,
    settings: ConfigDict,
    start: teacher_training.Start,
    saved_steps: tuple[int, ...],
    milestone: Callable[[int, state.TrainState], None],
) -> float:
    """Fine-tunes from the pretrained weights to the last of the steps; returns the seconds.

    The learning rate follows the schedule over all of `config.teacher.steps`.
    """
    setup = teacher_training.make_training(run, settings, start)

    def make_step(
        first_step: int, rate: training.Rate | None, progress: training.Progress
    ) -> Callable[..., Any]:
        del progress
        numbers = itertools.count(first_step)

        def step(trained: state.TrainState, batch: Batch) -> tuple[state.TrainState, Metrics]:
            factor = rate(next(numbers)) if rate else 1.0
            return setup.step(trained, batch, *teacher_training.inputs(run, start, factor))

        return step

    _, seconds = training.train(
        run,
        stage,
        training.Job(
            setup.shapes,
            setup.first_state,
            make_step,
            batch_size=settings.batch_size,
            operations=teacher_training.operations(run, settings, start, setup),
            steps=saved_steps[-1],
            milestones=saved_steps,
            milestone=milestone,
            stream="teacher",
            lost=set(),
            warmup_steps=settings.warmup_steps,
        ),
    )
    return seconds
