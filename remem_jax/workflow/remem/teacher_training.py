"""Builds a teacher, its training step and its apply functions, for a method."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from remem_jax import losses, mesh, models, optim, random_streams, sam
from remem_jax.data.images.augment import Mixing
from remem_jax.methods import METHODS
from remem_jax.models import encoder, tuning, vit
from remem_jax.models.normalisation import IDENTITY
from remem_jax.records import (
    Apply,
    Batch,
    Key,
    Params,
    TeacherApply,
    TrainApply,
    Variables,
)
from remem_jax.settings import division, tuning_of
from remem_jax.train import averaging, flops, state, steps, student_losses
from remem_jax.weights import augreg, described, timm_names
from remem_jax.workflow import context, memory_plan, optimiser, step_memory
from remem_jax.workflow.initial_checkpoints import Pretrained


class Saved(NamedTuple):
    """How a teacher is saved.

    Attributes:
        layout: The layout of timm's names; None for the names of AugReg or big_vision.
        architecture: timm's name of the network; "" if unknown.
    """

    layout: timm_names.Layout | None
    architecture: str = ""


class Start(NamedTuple):
    """The initial state of a fine-tuning.

    Attributes:
        model: The ViT, as changed by the method.
        tuned: Method of fine-tuning: full, LoRA, adapters or others.
        trainable: Trainable parameters; the state, SAM's norm and the checkpoints have no others.
        frozen: Other parameters.
        saved: How a teacher is saved.
        plan: Rematerialisation and gradient accumulation of its steps.
    """

    model: vit.VisionTransformer
    tuned: tuning.Tuning
    trainable: Params
    frozen: Params
    saved: Saved
    plan: memory_plan.Plan = memory_plan.Plan()

    def variables(self, trained: Params) -> Variables:
        """Returns the variables for `Tuning.wrap`, given trained parameters."""
        return {"params": tuning.join(trained, self.frozen)}

    def teacher(self, trained: Params) -> Variables:
        """Returns a teacher's variables, given trained parameters; LoRA is merged."""
        return {"params": self.tuned.merge(self.variables(trained)["params"])}

    @property
    def stacks(self) -> bool:
        """Whether blocks are stacked in training, which needs them fully trainable."""
        return self.model.scan and not self.frozen


def settings_of(config: ConfigDict, method: str) -> ConfigDict:
    """Returns `config.teacher`, as changed by a method."""
    settings = config.teacher.copy_and_resolve_references()
    settings.update(METHODS[method].fixed)
    return settings


def start(run: context.Run, pretrained: Pretrained, method: str) -> Start:
    """Builds the model and its initial parameters for a method."""
    settings = settings_of(run.config, method)
    checkpoint, image_size = pretrained.checkpoint, run.config.data.image_size
    given = {name: settings[name] for name in ("gelu", "pool") if settings[name]}
    model = checkpoint.make(
        classes=len(run.dataset.classes),
        representation=0,
        mlp_weight=settings.mlp_weight,
        attention_weight=settings.attention_weight,
        residual=settings.residual,
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        pruned_mlp=settings.pruned_mlp,
        pruned_attention=settings.pruned_attention,
        dtype=run.config.compute_dtype,
        scan=settings.scan,
        normalisation=pretrained.normalisation,
        **given,
    )
    variables = augreg.into(
        checkpoint,
        model,
        image_size=image_size,
        reset_head=True,
        resize=settings.position_resize,
    )
    tuned = tuning_of(settings)
    added_key = random_streams.key(run.config.seed, "teacher", "parameters")
    params = tuned.add(variables["params"], added_key)
    trainable, frozen = tuning.split(params, tuned.trains)
    # On the devices; otherwise each step would transfer them.
    saved = Saved(checkpoint.layout if _is_timms(checkpoint, model) else None)
    saved = saved._replace(architecture=checkpoint.architecture)
    return Start(model, tuned, trainable, run.place(frozen), saved)


def _is_timms(checkpoint: augreg.Checkpoint, model: vit.VisionTransformer) -> bool:
    """Returns whether a teacher is saved under timm's names.

    They are those of its checkpoint, unless AugReg or big_vision has its network and timm another
    GELU. Those two do not record a pool that the arrays leave open.
    """
    is_plain = checkpoint.options.keys() <= described.OF_NPZ
    is_others = is_plain and model.gelu == "tanh" and model.normalisation == IDENTITY
    as_checkpoint = checkpoint.form == "timm" and model.gelu == checkpoint.options["gelu"]
    is_open = model.pool == "cls_gap" or bool(model.class_token)
    return as_checkpoint or not is_others or is_open


class Training(NamedTuple):
    """The training of a method's teachers.

    Attributes:
        step: The compiled step: (state, batch, frozen parameters) -> (state, metrics).
        shapes: Shapes and shardings of the state.
        first_state: Creates the state at step 0.
    """

    step: Any
    shapes: state.TrainState
    first_state: Callable[[], state.TrainState]


def make_training(run: context.Run, settings: ConfigDict, start: Start) -> Training:
    """Builds the training step and initial state of a method's teachers."""
    tx = _optimiser(run, settings, start)
    make_step = functools.partial(
        steps.make_supervised_step,
        run.gather_params(train_apply(start, start.plan.rematerialise)),
        tx,
        run.train_transform,
        loss=functools.partial(
            losses.supervised,
            smoothing=settings.label_smoothing,
            mcmi=settings.mcmi,
            class_weights=run.class_weights(settings.class_balance),
        ),
        mixing=Mixing(settings.mixup, settings.cutmix),
        ascent=sam.sam(settings.rho) if settings.rho else None,
        division=division(settings, run.mesh, start.plan.accumulate),
    )

    def make(*, key: Key) -> averaging.Step:
        step = make_step(key=key)
        return averaging.averaged(step, decay=settings.ema, warmup=settings.ema_warmup)

    def stacked(trainable: Params) -> Params:
        return encoder.stack(trainable) if start.stacks else trainable

    def create(params: Params) -> state.TrainState:
        return averaging.begin(state.create({"params": params}, tx), decay=settings.ema)

    shapes = run.shapes(jax.eval_shape(lambda params: create(stacked(params)), start.trainable))

    def first_state() -> state.TrainState:
        # Each device gets only its shards, and creates its optimiser state itself.
        params = run.place(stacked(start.trainable))
        others = run.jit_create(lambda params: state.with_params(create(params), {}), params)
        return state.with_params(others(params), params)

    step = run.jit_step_with_key(make, random_streams.key(run.config.seed, "teacher"), shapes)
    return Training(step, shapes, first_state)


def _optimiser(
    run: context.Run, settings: ConfigDict, start: Start
) -> optax.GradientTransformation:
    make = functools.partial(
        optimiser.make, settings, params=start.trainable, clip_norm=settings.clip_norm
    )
    schedule = optax.constant_schedule(settings.learning_rate)
    if run.deadline is None:
        schedule = optim.warmup_cosine(
            peak=settings.learning_rate,
            steps=settings.steps[-1] - settings.probe_steps,
            warmup_steps=settings.warmup_steps,
        )
    # A linear probe trains nothing but the head, whatever the rates of the layers below.
    is_probe = start.tuned.method == "linear_probe"
    tx = make(schedule, is_head=None if is_probe else tuning.in_head)
    if not settings.probe_steps:
        return tx
    probe = make(optax.constant_schedule(settings.probe_learning_rate), is_head=None)
    return optim.head_first(probe, tx, steps=settings.probe_steps, is_head=tuning.in_head)


def inputs(run: context.Run, start: Start, rate: float = 1.0) -> tuple[Any, ...]:
    """Returns the arguments of a training step after the batch.

    Args:
        run: The run.
        start: The initial state, whose frozen parameters are an argument of the step, so that they
            are not compiled into it as constants.
        rate: Fraction of the peak learning rate, if the run has a deadline.
    """
    return (start.frozen,) if run.deadline is None else (start.frozen, np.float32(rate))


def train_apply(start: Start, rematerialise: str) -> TrainApply:
    """Returns the apply function in training mode, given what the backward pass recomputes."""
    return start.tuned.wrap(models.train_apply(start.model.clone(rematerialise=rematerialise)))


def evaluation_apply(start: Start) -> Apply:
    """Returns the apply function in evaluation mode."""
    return start.tuned.wrap(models.evaluation_apply(start.model))


def patches_apply(start: Start) -> TeacherApply:
    """Returns the apply function in evaluation mode, with patch tokens."""
    return start.tuned.wrap(models.teacher_apply(start.model, ("patches",)))


def teacher_apply(run: context.Run, start: Start) -> TeacherApply:
    """Returns the apply function in evaluation mode, with the outputs that losses need."""
    fields = student_losses.fields(run.config.student.losses)
    return start.tuned.wrap(models.teacher_apply(start.model, fields))


def operations(
    run: context.Run, settings: ConfigDict, start: Start, training: Training
) -> Callable[[state.TrainState, Batch], float]:
    """Returns a function that counts the floating-point operations of a training step.

    If nothing is recomputed, the step of `training` is counted, so that it is traced only once.
    """
    if start.plan.rematerialise != "nothing":  # Recomputation to save memory does not count.
        start = start._replace(plan=start.plan._replace(rematerialise="nothing"))
        training = make_training(run, settings, start)
    return lambda state, batch: flops.count(training.step, state, batch, *inputs(run, start))


def planned_step(run: context.Run, method: str, start: Start) -> memory_plan.Step:
    """Returns the training step of a method's teachers, to be planned."""
    settings, image_size = settings_of(run.config, method), run.config.data.image_size
    shapes = make_training(run, settings, start).shapes
    size = start.model.size

    @functools.cache
    def needs(plan: memory_plan.Plan) -> tuple[int, int]:
        training = make_training(run, settings, start._replace(plan=plan))
        batch = step_memory.batch(run, settings.batch_size)
        return step_memory.of_step(training.step, shapes, batch, *inputs(run, start))

    return memory_plan.Step(
        f"teachers/{method}",
        "config.teacher",
        memory_plan.candidates(
            settings,
            run.mesh,
            tokens=(image_size // size.pixels) ** 2 + start.model.prefix,
            whole=settings.mcmi > 0,
        ),
        functools.partial(train_apply, start),
        shapes.params,
        start.frozen,
        mesh.device_bytes((shapes, start.frozen)),
        needs,
        (image_size, image_size, 3),
        settings.batch_size // run.mesh.size,
        run.platform,
        start.model.scan,
        divisible=settings.mcmi == 0,
    )
