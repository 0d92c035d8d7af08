"""Estimates I(X; F), the information of features about the image, by reconstructing the image.

A decoder q predicts a probability for every sub-pixel (one channel of one pixel) x in [0, 1]. With
R its mean binary cross-entropy in nats, and n binary sub-pixels,

    I(X; F) = H(X) - H(X | F) >= H(X) - n R.

H(X) is the same for all teachers of the same images, so a lower R means a higher bound. Values
between 0 and 1 are treated as probabilities. Then R is at least E[H_b(x)], which is above 0, and
the excess is a divergence, E[KL(x || q)].

R on held-out images compares features of one size whose decoders have the same architecture and
training. It does not compare data sets, because H(X) differs. It ranks features by what a small
decoder can reconstruct; I(X; F) itself cannot rank them, because X determines F.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, appendix A.5; the bound is that of Wang
et al. 2021, https://arxiv.org/abs/2101.10832.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from remem_jax.records import Apply, Metrics, Params, TrainApply, Variables
from remem_jax.train import finite
from remem_jax.train.state import State

Images = Float[Array, "batch height width channel"]
Features = Float[Array, "batch side side feature"]

# Images in [-1, 1] -> features on a grid, for example a jitted teacher with its variables.
FeatureExtractor = Callable[[Array], Array]
# (state, features, targets) -> (state, metrics)
DecoderStep = Callable[[State, Array, Array], tuple[State, Metrics]]
States = tuple[State, ...]


class HeldOutBatch(NamedTuple):
    """A batch of held-out images.

    Attributes:
        images: Images in [-1, 1].
        mask: False for images that only pad the last batch.
    """

    images: Images
    mask: Bool[Array, " batch"]


class BatchLosses(NamedTuple):
    """Losses of a decoder on one batch, on the device.

    Attributes:
        losses: Mean loss over the sub-pixels of each image, masked images included.
        floors: Lowest possible loss of each image.
        pixels: Loss minus floor of each pixel, summed over the unmasked images.
    """

    losses: Float[Array, " batch"]
    floors: Float[Array, " batch"]
    pixels: Float[Array, "height width"]


# (variables, features, images, mask) -> losses
Measure = Callable[[Variables, Array, Array, Array], BatchLosses]


class Reconstruction(NamedTuple):
    """How well a decoder reconstructs held-out images; all in nats per sub-pixel.

    Attributes:
        loss: R, the mean over all images.
        floor: E[H_b(x)], the lowest possible loss.
        excess: Loss minus floor, the mean divergence between the image and the decoder's output.
        image_losses: Loss of each image, in their order.
        image_floors: Floor of each image.
        pixel_excess: Excess of each pixel, averaged over all images.
    """

    loss: float
    floor: float
    excess: float
    image_losses: Float[np.ndarray, " image"]
    image_floors: Float[np.ndarray, " image"]
    pixel_excess: Float[np.ndarray, "height width"]


def to_unit_range(images: Images) -> Images:
    """Maps images from [-1, 1], the range of model inputs, to [0, 1], that of decoder outputs."""
    return jnp.clip((images.astype(jnp.float32) + 1) / 2, 0.0, 1.0)


def cross_entropies(logits: Images, images: Images) -> Images:
    """Computes the binary cross-entropy of every sub-pixel in nats, in float32.

    Args:
        logits: A decoder's outputs, before the sigmoid.
        images: Images in [0, 1].
    """
    logits, images = logits.astype(jnp.float32), images.astype(jnp.float32)
    # A sum of non-negative terms, without cancellation, so that small losses are accurate.
    return images * jax.nn.softplus(-logits) + (1 - images) * jax.nn.softplus(logits)


def entropies(images: Images) -> Images:
    """Computes the binary entropy H_b of every sub-pixel of images in [0, 1], in nats.

    Their mean is the lowest possible `reconstruction_loss`, reached by logits log(x / (1 - x)).
    """
    images = images.astype(jnp.float32)
    return jax.scipy.special.entr(images) + jax.scipy.special.entr(1 - images)


def reconstruction_loss(logits: Images, images: Images) -> Float[Array, ""]:
    """Computes the loss of a decoder: the mean cross-entropy in nats per sub-pixel."""
    return jnp.mean(cross_entropies(logits, images))


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> optax.GradientTransformation:
    """Builds AdamW like torch's: weight decay applies also to biases and BatchNorm scales.

    The paper specifies a weight decay of 1e-4 and an epsilon of 1e-8 (appendix A.5), but not the
    learning rate and the betas.
    """
    return optax.adamw(
        learning_rate, b1=betas[0], b2=betas[1], eps=epsilon, weight_decay=weight_decay
    )


def make_decoder_step(apply: TrainApply, tx: optax.GradientTransformation) -> DecoderStep:
    """Builds the training step of a decoder.

    Args:
        apply: The decoder in training mode. Its key is constant, because decoders have no dropout.
        tx: The optimiser.

    Returns:
        A pure step `(state, features, targets) -> (state, metrics)` with targets in [0, 1]. The
        metrics are "loss" and "fault", of `finite.fault`. The caller jits it, once for all decoders
        of one shape.
    """

    def step(state: State, features: Features, targets: Images) -> tuple[State, Metrics]:
        def loss(params: Params) -> tuple[Float[Array, ""], Params]:
            logits, statistics = apply(params, state.statistics, features, jax.random.key(0))
            return reconstruction_loss(logits, targets), statistics

        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        fault = finite.fault(
            {
                "data": targets,
                "parameters": state.params,
                "teacher": features,
                "loss": value,
                "gradient": grads,
                "update": (params, statistics, opt_state),
            }
        )
        return State(state.step + 1, params, statistics, opt_state), {"loss": value, "fault": fault}

    return step


def make_lockstep(
    steps: Sequence[DecoderStep],
    teachers: Sequence[FeatureExtractor],
    teacher_indices: Sequence[int],
) -> Callable[[States, Array], tuple[States, Metrics]]:
    """Builds the step that trains several decoders on the same batch.

    Each decoder gets the same parameters as if it were trained alone.

    Args:
        steps: Jitted step of each decoder (from `make_decoder_step`) or critic (from
            `info_nce.make_critic_step`). Decoders with the same training share one step.
        teachers: Functions from images to features.
        teacher_indices: Index of the teacher of each decoder.

    Returns:
        A function of the tuple of the decoders' states and a batch of images in [-1, 1], not to be
        jitted. Its metrics are lists with one value per decoder.

    Raises:
        ValueError: If there is no teacher with an index, or a teacher has no decoder.
    """
    decoders_of = _decoders_by_teacher(teachers, teacher_indices)
    targets_of = jax.jit(to_unit_range)

    def lockstep(states: States, images: Images) -> tuple[States, Metrics]:
        targets, updated = targets_of(images), list(states)
        metrics: list[Any] = [None] * len(states)
        for teacher, decoders in zip(teachers, decoders_of, strict=True):
            features = teacher(images)
            for i in decoders:
                updated[i], metrics[i] = steps[i](updated[i], features, targets)
        return tuple(updated), {name: [each[name] for each in metrics] for name in metrics[0]}

    return lockstep


def _decoders_by_teacher(
    teachers: Sequence[FeatureExtractor], indices: Sequence[int]
) -> list[list[int]]:
    """Returns the indices of the decoders of each teacher."""
    if set(indices) != set(range(len(teachers))):
        raise ValueError(
            f"Each of the {len(teachers)} teachers needs a decoder, got the teachers "
            f"{list(indices)}."
        )
    return [[i for i, index in enumerate(indices) if index == n] for n in range(len(teachers))]


def make_measure(apply: Apply) -> Measure:
    """Builds the function that computes a decoder's losses on a batch.

    Args:
        apply: The decoder in evaluation mode.

    Returns:
        A pure function of variables, features, images in [-1, 1], and mask. The caller wraps it in
        `jax.jit`.
    """

    def measure(
        variables: Variables, features: Features, images: Images, mask: Bool[Array, " batch"]
    ) -> BatchLosses:
        targets = to_unit_range(images)
        losses, floors = cross_entropies(apply(variables, features), targets), entropies(targets)
        excess = jnp.where(mask[:, None, None, None], losses - floors, 0.0)
        return BatchLosses(
            jnp.mean(losses, axis=(1, 2, 3)),
            jnp.mean(floors, axis=(1, 2, 3)),
            jnp.sum(jnp.mean(excess, axis=3), axis=0),
        )

    return measure


def evaluate(
    measure: Measure,
    teachers: Sequence[FeatureExtractor],
    teacher_indices: Sequence[int],
    variables: Sequence[Variables],
    batches: Iterable[HeldOutBatch],
    *,
    fetch: Callable[[Any], Any] = jax.device_get,
    on_features: Callable[[int, Array, HeldOutBatch], None] | None = None,
) -> list[Reconstruction]:
    """Evaluates decoders on held-out images; the means do not depend on the batch size.

    Args:
        measure: The jitted result of `make_measure`.
        teachers: Functions from images to features.
        teacher_indices: Index of the teacher of each decoder.
        variables: Variables of each decoder.
        batches: All images once.
        fetch: Copies arrays from the devices of all processes to the host.
        on_features: Called with the index of a teacher, its features of a batch, and the batch, to
            compute other things from the same forward pass.

    Raises:
        ValueError: As in `make_lockstep`, or if there are no images.
    """
    decoders_of = _decoders_by_teacher(teachers, teacher_indices)
    masks: list[np.ndarray] = []
    losses: list[list[Any]] = [[] for _ in teacher_indices]
    for batch in batches:
        for index, (teacher, decoders) in enumerate(zip(teachers, decoders_of, strict=True)):
            features = teacher(batch.images)
            if on_features:
                on_features(index, features, batch)
            for i in decoders:
                losses[i].append(measure(variables[i], features, *batch))
        if masks:  # Fetches the previous batch, so that the host is at most one batch ahead.
            for of_decoder in losses:
                of_decoder[-2] = fetch(of_decoder[-2])
        masks.append(np.asarray(fetch(batch.mask)))
    if not any(mask.any() for mask in masks):
        raise ValueError("The batches contain no images to reconstruct.")
    return [_reconstruction(fetch(of_decoder), masks) for of_decoder in losses]


def _reconstruction(batches: Sequence[BatchLosses], masks: Sequence[np.ndarray]) -> Reconstruction:
    mask = np.concatenate(masks)
    losses = np.concatenate([batch.losses for batch in batches]).astype(np.float64)[mask]
    floors = np.concatenate([batch.floors for batch in batches]).astype(np.float64)[mask]
    pixels = np.stack([batch.pixels for batch in batches]).astype(np.float64).sum(0) / len(losses)
    loss, floor = float(losses.mean()), float(floors.mean())
    return Reconstruction(loss, floor, loss - floor, losses, floors, pixels)


def plateau_slope(losses: Sequence[float], last: int) -> float:
    """Fits a line to the last held-out losses; returns its slope per evaluation.

    The slope is negative while a decoder improves, and positive if it overfits. The curve is flat
    enough to rank teachers if abs(slope) * last, the change over as many further evaluations, is
    small compared with the differences between teachers.

    Args:
        losses: Losses of all evaluations at equal intervals, oldest first, in nats per sub-pixel.
        last: Number of evaluations to fit, at least 2.

    Raises:
        ValueError: If there are fewer evaluations.
    """
    if not 2 <= last <= len(losses):
        raise ValueError(f"A slope needs 2 to {len(losses)} evaluations, got last={last}.")
    return float(np.polyfit(np.arange(last), np.asarray(losses[-last:], np.float64), 1)[0])
