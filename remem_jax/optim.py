"""Schedules and optimisers; SAM is in `sam`."""

import jax
import optax

from remem_jax.records import Params


def warmup_cosine(*, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Builds a schedule: linear from 0 to `peak` in the warm-up, then a cosine to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, end_value=0.0)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Builds SGD with momentum, for teachers (with clipping) and students.

    The order is that of the SAM authors and of torch: clipping, weight decay added to the
    gradient (so that it enters the momentum), momentum, learning rate. SAM comes before all of
    them, as `ascent` of `train.steps.make_supervised_step`.

    Args:
        schedule: Learning rate by step.
        momentum: Decay of the trace, from 0 to below 1.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: L2 coefficient on all parameters.
        clip_norm: Maximum global norm of the gradient; None for no clipping.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def adamw(
    schedule: optax.Schedule, *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Builds AdamW with clipping, for pretraining; weight decay applies to kernels only."""

    def kernels(params: Params) -> Params:
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b2=0.99, weight_decay=weight_decay, mask=kernels),
    )
