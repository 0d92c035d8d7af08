"""Builds the optimiser that `config.teacher` or `config.student` describes."""

import functools
from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from remem_jax import optim
from remem_jax.models import parameter_groups
from remem_jax.records import Params


def make(
    settings: ConfigDict,
    schedule: optax.Schedule,
    params: Params,
    *,
    clip_norm: float | None,
    is_head: Callable[[str], bool] | None,
) -> optax.GradientTransformation:
    """Builds an optimiser.

    Args:
        settings: `config.teacher` or `config.student`.
        schedule: Learning rate of the head by step.
        params: Shapes of the parameters.
        clip_norm: Maximum global norm of the gradient; None for no clipping.
        is_head: Returns whether the parameter of a slash-joined name belongs to the head. None for
            the same learning rate for all parameters, whatever the settings.

    Raises:
        SettingError: If there is layer-wise decay, and the parameters have no layers.
    """
    if settings.optimizer == "adamw":
        first, second = settings.betas
        tx = optim.adamw(
            schedule,
            betas=(first, second),
            epsilon=settings.epsilon,
            weight_decay=settings.weight_decay,
            clip_norm=clip_norm,
        )
    else:
        tx = optim.sgd(
            schedule,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            clip_norm=clip_norm,
        )
    if is_head is None or (settings.layer_decay == 1 and settings.body_rate == 1):
        return tx
    factors = functools.partial(
        parameter_groups.rate_factors,
        is_head=is_head,
        layer_decay=settings.layer_decay,
        body_rate=settings.body_rate,
    )
    factors(params)  # Raises before anything is trained.
    return optim.scaled(tx, factors)
