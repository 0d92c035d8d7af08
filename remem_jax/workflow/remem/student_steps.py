"""The options, optimiser and step of students that `config.student` describes."""

import functools
from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from remem_jax import models, optim
from remem_jax.models import projection
from remem_jax.records import Key, Params, StudentApply
from remem_jax.train import averaging, hard_labels, steps, student_losses
from remem_jax.workflow import optimiser


def regularisation(settings: ConfigDict) -> dict[str, float]:
    """Returns the options of a student's constructor that are not 0; not every student has them."""
    return {name: settings[name] for name in ("dropout", "drop_path") if settings[name]}


def has_rates(settings: ConfigDict) -> bool:
    """Returns whether the learning rates of pretrained parameters differ from the head's."""
    return bool(settings.init) and (settings.layer_decay, settings.body_rate) != (1, 1)


def make_optimiser(
    settings: ConfigDict, params: Params, *, pretrained: bool, paced: bool
) -> optax.GradientTransformation:
    """Builds the optimiser of students for a peak learning rate of 1.

    Args:
        settings: `config.student`.
        params: Shapes of a student's parameters.
        pretrained: Whether the students start from `config.student.init`. Only those have other
            learning rates in the body than in the head.
        paced: Whether the learning rate of each step comes from a `pace.Pace`.

    Raises:
        SettingError: If `config.student.layer_decay` does not fit the student.
    """
    schedule = optax.constant_schedule(1.0)
    if not paced:
        schedule = optim.warmup_cosine(
            peak=1.0, steps=settings.steps, warmup_steps=settings.warmup_steps
        )
    head = models.STUDENTS[settings.model].head

    def is_head(name: str) -> bool:
        return name in head or name.startswith(f"{projection.NAME}/")

    return optimiser.make(
        settings,
        schedule,
        params,
        clip_norm=settings.clip_norm or None,
        is_head=is_head if pretrained else None,
    )


def make_step(
    settings: ConfigDict,
    apply: StudentApply,
    tx: optax.GradientTransformation,
    *,
    loss: steps.Loss,
    key: Key,
) -> averaging.Step:
    """Builds the step of a student, which also updates its average (`config.student.ema`)."""
    step = steps.make_student_step(apply, tx, loss=loss, key=key)
    return averaging.averaged(step, decay=settings.ema, warmup=settings.ema_warmup)


def bind(
    settings: ConfigDict, class_weights: jax.Array | None, *, unlabelled: bool
) -> Callable[[student_losses.StudentLoss], steps.Loss]:
    """Returns a function that binds the settings of `config.student` to a loss.

    Args:
        settings: `config.student`.
        class_weights: Weight of each class in the loss of the labels; None is 1.
        unlabelled: Whether batches have images without a label.
    """

    def bound(loss: student_losses.StudentLoss) -> steps.Loss:
        plain = functools.partial(loss, hard_labels=bool(settings.hard_labels))
        weighted = hard_labels.with_class_weights(plain, class_weights)
        smoothed = hard_labels.with_smoothing(
            weighted, settings.label_smoothing, unlabelled=unlabelled
        )
        scaled = hard_labels.with_unlabelled(smoothed) if unlabelled else smoothed
        return hard_labels.with_classes(scaled) if loss.needs_classes else scaled

    return bound
