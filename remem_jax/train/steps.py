"""Pure steps; the caller jits them.

The randomness of a step comes from the key of its stage and from its number alone; what it draws
comes from the streams "crops", "flips", "mixup" and "dropout" of these.
"""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float

from remem_jax import losses, optim, random_streams
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
from remem_jax.train import finite
from remem_jax.train.division import WHOLE, Division, Examples, Found, divided, require_divisible
from remem_jax.train.objectives import StudentLoss
from remem_jax.train.state import State

# (state, batch, frozen parameters) -> (state, metrics)
SupervisedStep = Callable[[State, Batch, Params], tuple[State, Metrics]]
StudentStep = Callable[
    [State, Array, Array, Outputs | None, Hyperparameters], tuple[State, Metrics]
]


def make_supervised_step(
    apply: TrainApply,
    tx: optax.GradientTransformationExtraArgs,
    transform: Transform,
    *,
    key: Key,
    loss: Callable[[Array, Labels], Array] = losses.cross_entropy,
    mixup: float = 0.0,
    ascent: optax.GradientTransformationExtraArgs | None = None,
    division: Division = WHOLE,
) -> SupervisedStep:
    """Builds the step that fine-tunes a teacher (and pretrains one).

    Loss and metrics come from the clean pass, also with SAM; both passes see the same augmented
    images and drop the same units. Augmentation and mixup apply to the whole batch, however it is
    divided.

    With groups of m examples S_1, ..., S_n and `ascent=optim.sam(rho)` the step goes down

        1/n sum_i grad L_{S_i}(w + rho grad L_{S_i}(w) / |grad L_{S_i}(w)|),

    which is plain SAM where m is the batch. It costs two passes for every m. A device holds the
    gradient, the perturbed parameters and the sum of one group at a time, whole also where the
    state is divided among devices. Gradients pass between devices once per step, and once more
    for the ascent where all of the batch shares it.

    Args:
        apply: The model in training mode. What keeps batch statistics cannot be divided.
        tx: Turns gradients into updates; may ask for `grad_fn`, as `optim.sam` does.
        transform: Makes model inputs of stored images.
        key: Of the stage; see `random_streams`.
        loss: What is minimised, of logits and labels; of each part where the batch is divided.
        mixup: See `augment_and_mix`.
        ascent: What the gradient of each group goes through before their mean goes through `tx`:
            `optim.sam`. Without it nothing depends on the groups, and there are none.
        division: How the batch is divided.

    Returns:
        A pure step `(state, batch, frozen) -> (state, metrics)`. The state holds the parameters
        that train, `frozen` those that do not ({} where all train): gradients, SAM's norm and
        the optimiser see the former alone. Metrics are "loss"; "fault", of `finite.fault`;
        "gradient_norm", of what goes into `tx`; and with SAM "ascent_norm", the mean over the
        groups. Tracing it raises
        ValueError where the batch does not divide.

    Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412, section 4.1 (m-sharpness);
    Andriushchenko & Flammarion 2022, https://arxiv.org/abs/2206.06232, equation 3.
    """

    def step(state: State, batch: Batch, frozen: Params) -> tuple[State, Metrics]:
        step_key = random_streams.within(key, state.step)
        dropout_key = random_streams.within(step_key, "dropout")
        images, mixed = augment_and_mix(transform, step_key, batch, mixup)

        def of_params(params: Params, examples: Examples) -> tuple[Float[Array, ""], Params]:
            whole = tuning.join(params, frozen)
            logits, statistics = apply(whole, state.statistics, examples.images, examples.keys[0])
            return loss(logits, examples.labels), statistics

        def clean(params: Params, examples: Examples) -> tuple[Params, Found]:
            (value, statistics), grads = jax.value_and_grad(of_params, has_aux=True)(
                params, examples
            )
            return grads, ({"loss": value}, statistics)

        gradient, parts = divided(clean, ascent, division, images.shape[0])
        require_divisible(state, ascent, division, parts)
        labels = batch.label
        if mixup:  # Shares of the classes, which the model knows.
            whole = tuning.join(state.params, frozen)
            logits, _ = jax.eval_shape(apply, whole, state.statistics, images, dropout_key)
            labels = mixed(logits.shape[-1])
        examples = Examples(images, labels, jax.random.split(dropout_key, parts))

        grads, (found, statistics) = gradient(state.params, examples)
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            grad_fn=lambda params: gradient(params, examples)[0],
        )
        params = optax.apply_updates(state.params, updates)
        fault = finite.fault(
            {
                "data": (images, labels),
                "parameters": (state.params, frozen),
                "loss": found["loss"],
                "gradient": grads,
                "update": (params, statistics, opt_state),
            }
        )
        metrics = {**found, "gradient_norm": optax.tree.norm(grads), "fault": fault}
        ascent_norm = optim.ascent_norm(opt_state)
        if ascent_norm is not None:
            metrics["ascent_norm"] = ascent_norm
        return State(state.step + 1, params, statistics, opt_state), metrics

    return step


def augment_and_mix(
    transform: Transform, key: Key, batch: Batch, mixup: float
) -> tuple[Float[Array, "batch height width channel"], Callable[[int], Labels]]:
    """What models see of a batch, and the labels of that.

    Args:
        transform: Makes model inputs of stored images.
        key: Of the stage and this step.
        batch: Stored images and their labels.
        mixup: `alpha` of `augment.mixup_share`; 0 mixes nothing.

    Returns:
        Images, and a function from the number of classes to the labels: indices where nothing
        is mixed, else shares of the classes.
    """
    images = transform(key, batch.image)
    if not mixup:
        return images, lambda classes: batch.label
    share = augment.mixup_share(random_streams.within(key, "mixup"), mixup)

    def labels(classes: int) -> Labels:
        return augment.mix(jax.nn.one_hot(batch.label, classes), share)

    return augment.mix(images, share), labels


def make_student_step(
    apply: StudentApply,
    tx: optax.GradientTransformation,
    *,
    loss: StudentLoss,
    key: Key,
) -> StudentStep:
    """Builds the step of one student, given augmented images and the teacher's outputs.

    Args:
        apply: The student in training mode, with what the loss compares.
        tx: Turns gradients into updates for a peak learning rate of 1; the step scales them by
            the student's own.
        loss: What a student minimises, of `objectives.STUDENT_LOSSES`, with `hard_labels` bound;
            or `objectives.labels_alone`, for students without a teacher, whose outputs are None.
        key: Of the stage; each of the students' seeds has dropout of its own.

    Returns:
        A pure step `(state, images, labels, teacher, settings) -> (state, metrics)`. All
        settings are traced, so one compiled step serves every student of a grid. Metrics are
        "loss" and "fault", of `finite.fault`.
    """

    def step(
        state: State,
        images: Float[Array, "batch height width channel"],
        labels: Labels,
        teacher: Outputs | None,
        settings: Hyperparameters,
    ) -> tuple[State, Metrics]:
        dropout_key = random_streams.within(key, state.step, "dropout", settings.seed)

        def of_params(params: Params) -> tuple[Float[Array, ""], Params]:
            student, statistics = apply(params, state.statistics, images, dropout_key)
            value = loss(
                student,
                teacher,
                labels,
                temperature=settings.temperature,
                weight=settings.weight,
            )
            return value, statistics

        (value, statistics), grads = jax.value_and_grad(of_params, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda update: settings.learning_rate * update, updates)
        params = optax.apply_updates(state.params, updates)
        fault = finite.fault(
            {
                "data": (images, labels),
                "parameters": state.params,
                "teacher": teacher,
                "loss": value,
                "gradient": grads,
                "update": (params, statistics, opt_state),
            }
        )
        return State(state.step + 1, params, statistics, opt_state), {"loss": value, "fault": fault}

    return step
