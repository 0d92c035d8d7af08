"""Pure training steps; the caller jits them.

The randomness of a step depends only on the key of its stage and on its number. Its streams are
"crops", "flips", those of `policies`, "mixup", "cutmix" and "dropout".
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from remem_jax import random_streams
from remem_jax.data.images import augment
from remem_jax.models import tuning
from remem_jax.records import (
    Batch,
    Hyperparameters,
    Key,
    Labels,
    Metrics,
    Outputs,
    Params,
    StudentApply,
    TrainApply,
    Transform,
)
from remem_jax.train import finite, teacher_queue
from remem_jax.train.division import (
    WHOLE,
    Auxiliary,
    Division,
    Examples,
    divided,
    require_whole_statistics,
)
from remem_jax.train.state import State

# (student, teacher, labels, *, temperature, weight, progress) -> loss; see `student_losses`.
Loss = Callable[..., Float[Array, ""]]
# (state, batch, frozen parameters, optionally a factor of the update) -> (state, metrics)
SupervisedStep = Callable[..., tuple[State, Metrics]]
# The state is a `State`, or an `Averaged` if the step is wrapped by `averaging.averaged`.
StudentStep = Callable[[Any, Array, Array, Outputs | None, Hyperparameters], tuple[Any, Metrics]]


def make_supervised_step(
    apply: TrainApply,
    tx: optax.GradientTransformation,
    transform: Transform,
    *,
    key: Key,
    loss: Callable[[Array, Labels], Array],
    mixing: augment.Mixing,
    ascent: optax.GradientTransformationExtraArgs | None = None,
    division: Division = WHOLE,
) -> SupervisedStep:
    """Builds the step that fine-tunes or pretrains a teacher.

    With SAM, loss and metrics come from the clean pass; both passes use the same augmented images
    and drop the same units. Augmentation and mixing apply to the whole batch, however it is
    divided.

    With groups of m examples S_1, ..., S_n and `ascent=sam.sam(rho)` the step descends

        1/n sum_i grad L_{S_i}(w + rho grad L_{S_i}(w) / |grad L_{S_i}(w)|),

    which is plain SAM if m is the batch size. It costs two passes for every m. A device holds the
    gradient, the perturbed parameters and the sum of one group at a time, whole even if the state
    is sharded. Gradients pass between devices once per step, and once more for the ascent if the
    whole batch shares it.

    Args:
        apply: The model in training mode. A model with batch statistics cannot be divided.
        tx: Turns gradients into updates.
        transform: Converts stored images to model inputs.
        key: Key of the stage; see `random_streams`.
        loss: The loss, a function of the logits and labels of a microbatch.
        mixing: See `augment_and_mix`.
        ascent: `sam.sam(rho)`, applied to the gradient of each group before their mean enters
            `tx`. None is training without SAM, where groups have no effect.
        division: How the batch is divided.

    Returns:
        A pure step `(state, batch, frozen, factor) -> (state, metrics)`. The state holds the
        trainable parameters, `frozen` the others ({} if all are trained). Gradients, SAM's norm and
        the optimiser see only the trainable ones. `factor` multiplies the update; it may be
        omitted, which is 1. Metrics are "loss"; "fault", of `finite.fault`; "gradient_norm", of the
        gradient that enters `tx`; and with SAM "ascent_norm", the mean over the groups. Tracing the
        step raises ValueError if the batch cannot be divided.

    Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412, section 4.1 (m-sharpness);
    Andriushchenko & Flammarion 2022, https://arxiv.org/abs/2206.06232, equation 3.
    """

    def step(
        state: State, batch: Batch, frozen: Params, factor: Float[Array, ""] | None = None
    ) -> tuple[State, Metrics]:
        step_key = random_streams.within(key, state.step)
        dropout_key = random_streams.within(step_key, "dropout")
        images, mixed = augment_and_mix(transform, step_key, batch, mixing)

        def loss_and_statistics(
            params: Params, examples: Examples
        ) -> tuple[Float[Array, ""], Params]:
            whole = tuning.join(params, frozen)
            logits, statistics = apply(whole, state.statistics, examples.images, examples.keys[0])
            return loss(logits, examples.labels), statistics

        def clean(params: Params, examples: Examples) -> tuple[Params, Auxiliary]:
            (value, statistics), grads = jax.value_and_grad(loss_and_statistics, has_aux=True)(
                params, examples
            )
            return grads, ({"loss": value}, statistics)

        gradient, microbatches = divided(clean, ascent, division, images.shape[0])
        require_whole_statistics(state, microbatches)
        labels = batch.label
        if any(mixing):  # Shares of the classes, whose number the model determines.
            whole = tuning.join(state.params, frozen)
            logits, _ = jax.eval_shape(apply, whole, state.statistics, images, dropout_key)
            labels = mixed(logits.shape[-1])
        examples = Examples(images, labels, jax.random.split(dropout_key, microbatches))

        grads, (metrics, statistics) = gradient(state.params, examples)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        if factor is not None:
            updates = jax.tree.map(lambda update: factor * update, updates)
        params = optax.apply_updates(state.params, updates)
        fault = finite.fault(
            {
                "data": (images, labels),
                "parameters": (state.params, frozen),
                "loss": metrics["loss"],
                "gradient": grads,
                "update": (params, statistics, opt_state),
            }
        )
        metrics = {**metrics, "gradient_norm": optax.tree.norm(grads), "fault": fault}
        return State(state.step + 1, params, statistics, opt_state), metrics

    return step


def augment_and_mix(
    transform: Transform, key: Key, batch: Batch, mixing: augment.Mixing
) -> tuple[Float[Array, "batch height width channel"], Callable[[int], Labels]]:
    """Augments a batch and mixes its images.

    Args:
        transform: Converts stored images to model inputs.
        key: Key of the stage and this step.
        batch: Stored images and their labels.
        mixing: How images are mixed; zeros mix nothing.

    Returns:
        The model inputs, and a function from the number of classes to the labels: class indices,
        or shares of all classes if images are mixed.
    """
    images = transform(key, batch.image)
    if not any(mixing):
        return images, lambda classes: batch.label
    mixtures, share = augment.mix_images(images, key, mixing)

    def labels(classes: int) -> Labels:
        return augment.mix(jax.nn.one_hot(batch.label, classes), share)

    return mixtures, labels


def make_student_step(
    apply: StudentApply,
    tx: optax.GradientTransformation,
    *,
    loss: Loss,
    key: Key,
) -> StudentStep:
    """Builds the step of one student, given augmented images and the teacher's outputs.

    Args:
        apply: The student in training mode, with the outputs that the loss compares.
        tx: Turns gradients into updates for a peak learning rate of 1; the step scales them by
            the student's learning rate.
        loss: One of `student_losses.LOSSES`, or `student_losses.LABELS` for students without a
            teacher, with `hard_labels` bound. If it has a queue, so has the state.
        key: Key of the stage. Students with different seeds have different dropout.

    Returns:
        A pure step `(state, images, labels, targets, hyperparameters) -> (state, metrics)`.
        Targets are the teacher's outputs, None without a teacher. Hyperparameters are traced, so
        that one compiled step serves every student of a grid. Metrics are "loss" and "fault", of
        `finite.fault`.
    """

    def step(
        state: State,
        images: Float[Array, "batch height width channel"],
        labels: Labels,
        targets: Outputs | None,
        hyperparameters: Hyperparameters,
    ) -> tuple[State, Metrics]:
        dropout_key = random_streams.within(key, state.step, "dropout", hyperparameters.seed)
        targets, queue = teacher_queue.push(state.statistics, targets)
        before = teacher_queue.without(state.statistics)

        def loss_and_statistics(params: Params) -> tuple[Float[Array, ""], Params]:
            outputs, statistics = apply(params, before, images, dropout_key)
            value = loss(
                outputs,
                targets,
                labels,
                temperature=hyperparameters.temperature,
                weight=hyperparameters.weight,
                progress=hyperparameters.progress,
            )
            return value, {**statistics, **queue}

        (value, statistics), grads = jax.value_and_grad(loss_and_statistics, has_aux=True)(
            state.params
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda update: hyperparameters.learning_rate * update, updates)
        params = optax.apply_updates(state.params, updates)
        fault = finite.fault(
            {
                "data": (images, labels),
                "parameters": state.params,
                "teacher": targets,
                "loss": value,
                "gradient": grads,
                "update": (params, statistics, opt_state),
            }
        )
        return State(state.step + 1, params, statistics, opt_state), {"loss": value, "fault": fault}

    return step
