"""I(X; F), what features say of the image, by how well a decoder reconstructs it from them.

A decoder q gives every sub-pixel (one channel of one pixel) x in [0, 1] a probability. With R its
mean binary cross-entropy in nats, and n sub-pixels of 0 or 1,

    I(X; F) = H(X) - H(X | F) >= H(X) - n R.

H(X) is the same for all teachers of the same images: the lower R, the higher the bound. Values
between 0 and 1 are taken as probabilities. R then has a floor above 0, E[H_b(x)], and what lies
above it is a divergence, E[KL(x || q)].

R compares features of one size, read by decoders of one kind that were trained alike, on held-out
images; it does not compare data sets, since H(X) differs. It ranks what a small decoder can read
of the features, which is all that can be ranked: X determines F.

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

# Images in [-1, 1] -> their features on a grid: a teacher with its variables, jitted.
Teach = Callable[[Array], Array]
# (state, features, targets) -> (state, metrics)
DecoderStep = Callable[[State, Array, Array], tuple[State, Metrics]]
States = tuple[State, ...]


class Shown(NamedTuple):
    """Held-out images as the teachers take them.

    Attributes:
        images: In [-1, 1].
        mask: False where an example only fills up the last batch.
    """

    images: Images
    mask: Bool[Array, " batch"]


class Measured(NamedTuple):
    """Losses of one batch, on the device.

    Attributes:
        losses: Of each image, also where it is masked: the mean over its sub-pixels.
        floors: The least that any decoder could reach.
        pixels: Of each pixel the loss above the floor, summed over the images that count.
    """

    losses: Float[Array, " batch"]
    floors: Float[Array, " batch"]
    pixels: Float[Array, "height width"]


Measure = Callable[[Variables, Array, Array, Array], Measured]


class Reconstruction(NamedTuple):
    """How well a decoder reconstructs held-out images; all in nats per sub-pixel.

    Attributes:
        loss: R, the mean over all images.
        floor: E[H_b(x)].
        excess: Loss minus floor: the mean divergence of the decoder's pixels from the image's.
        image_losses: R of each image, in the order of the images.
        image_floors: H_b of each image.
        pixel_excess: The excess of each pixel, the mean over all images.
    """

    loss: float
    floor: float
    excess: float
    image_losses: Float[np.ndarray, " image"]
    image_floors: Float[np.ndarray, " image"]
    pixel_excess: Float[np.ndarray, "height width"]


def to_unit_range(images: Images) -> Images:
    """Images in [-1, 1], as models take them, brought to [0, 1], as decoders give them."""
    return jnp.clip((images.astype(jnp.float32) + 1) / 2, 0.0, 1.0)


def cross_entropies(logits: Images, images: Images) -> Images:
    """Binary cross-entropy of every sub-pixel in nats, in float32.

    Args:
        logits: A decoder's, before the sigmoid.
        images: In [0, 1].
    """
    logits, images = logits.astype(jnp.float32), images.astype(jnp.float32)
    # A sum without differences, so that small losses keep their digits.
    return images * jax.nn.softplus(-logits) + (1 - images) * jax.nn.softplus(logits)


def entropies(images: Images) -> Images:
    """Binary entropy H_b of every sub-pixel of images in [0, 1], in nats; 0 for 0 and for 1.

    Their mean is the least `reconstruction_loss`, that of logits log(x / (1 - x)).
    """
    images = images.astype(jnp.float32)
    return jax.scipy.special.entr(images) + jax.scipy.special.entr(1 - images)


def reconstruction_loss(logits: Images, images: Images) -> Float[Array, ""]:
    """What a decoder minimises: the mean cross-entropy in nats per sub-pixel."""
    return jnp.mean(cross_entropies(logits, images))


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> optax.GradientTransformation:
    """AdamW as torch's: everything decays, also biases and the scales of BatchNorm.

    The paper has a weight decay of 1e-4 and an epsilon of 1e-8 (appendix A.5), and leaves open the
    learning rate and the betas.
    """
    return optax.adamw(
        learning_rate, b1=betas[0], b2=betas[1], eps=epsilon, weight_decay=weight_decay
    )


def make_decoder_step(apply: TrainApply, tx: optax.GradientTransformation) -> DecoderStep:
    """Builds the step of one decoder.

    Args:
        apply: The decoder in training mode; its key is constant, since decoders drop nothing.
        tx: Turns gradients into updates.

    Returns:
        A pure step `(state, features, targets) -> (state, metrics)`; targets are in [0, 1]. The
        caller jits it, once for all decoders of one shape. Metrics are "loss" and "fault", of
        `finite.fault`.
    """

    def step(state: State, features: Features, targets: Images) -> tuple[State, Metrics]:
        def of_params(params: Params) -> tuple[Float[Array, ""], Params]:
            logits, statistics = apply(params, state.statistics, features, jax.random.key(0))
            return reconstruction_loss(logits, targets), statistics

        (value, statistics), grads = jax.value_and_grad(of_params, has_aux=True)(state.params)
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
    steps: Sequence[DecoderStep], teachers: Sequence[Teach], reads: Sequence[int]
) -> Callable[[States, Array], tuple[States, Metrics]]:
    """Builds the step of many decoders on one pass of the images; they are as if trained alone.

    Args:
        steps: Of each decoder, from `make_decoder_step`, jitted, and one for all that train alike;
            or of a critic, from `info_nce.make_critic_step`.
        teachers: From images to features.
        reads: For each decoder the number of the teacher whose features it reads.

    Returns:
        A step over the tuple of the decoders' states and images in [-1, 1]; not to be jitted. Its
        metrics are lists of one value per decoder.

    Raises:
        ValueError: If a decoder reads a teacher that there is not, or a teacher has no reader.
    """
    readers = _readers(teachers, reads)
    targets_of = jax.jit(to_unit_range)

    def lockstep(states: States, images: Images) -> tuple[States, Metrics]:
        targets, found = targets_of(images), list(states)
        metrics: list[Any] = [None] * len(states)
        for teach, own in zip(teachers, readers, strict=True):
            features = teach(images)
            for i in own:
                found[i], metrics[i] = steps[i](found[i], features, targets)
        return tuple(found), {name: [one[name] for one in metrics] for name in metrics[0]}

    return lockstep


def _readers(teachers: Sequence[Teach], reads: Sequence[int]) -> list[list[int]]:
    """For each teacher the decoders that read it."""
    if set(reads) != set(range(len(teachers))):
        raise ValueError(f"Decoders read all of {len(teachers)} teachers, got {list(reads)}.")
    return [[i for i, read in enumerate(reads) if read == n] for n in range(len(teachers))]


def make_measure(apply: Apply) -> Measure:
    """Builds the function from a decoder's variables, features, images and mask to its losses.

    Args:
        apply: The decoder in evaluation mode.

    Returns:
        A pure function of images in [-1, 1]. The caller wraps it in `jax.jit`.
    """

    def measure(
        variables: Variables, features: Features, images: Images, mask: Bool[Array, " batch"]
    ) -> Measured:
        targets = to_unit_range(images)
        losses, floors = cross_entropies(apply(variables, features), targets), entropies(targets)
        excess = jnp.where(mask[:, None, None, None], losses - floors, 0.0)
        return Measured(
            jnp.mean(losses, axis=(1, 2, 3)),
            jnp.mean(floors, axis=(1, 2, 3)),
            jnp.sum(jnp.mean(excess, axis=3), axis=0),
        )

    return measure


def evaluate(
    measure: Measure,
    teachers: Sequence[Teach],
    reads: Sequence[int],
    variables: Sequence[Variables],
    batches: Iterable[Shown],
    *,
    fetch: Callable[[Any], Any] = jax.device_get,
    seen: Callable[[int, Array, Shown], None] | None = None,
) -> list[Reconstruction]:
    """How well decoders reconstruct held-out images; exact means, however these are batched.

    Args:
        measure: From `make_measure`, jitted.
        teachers: From images to features.
        reads: For each decoder the number of the teacher whose features it reads.
        variables: Of each decoder.
        batches: All images once.
        fetch: Brings arrays from the devices, of all processes, to the host.
        seen: Called with the number of a teacher, its features of a batch, and the batch, so that
            what else is measured of them needs no pass of its own.

    Raises:
        ValueError: As `make_lockstep`, or if there are no images.
    """
    readers = _readers(teachers, reads)
    masks: list[np.ndarray] = []
    found: list[list[Any]] = [[] for _ in reads]
    for batch in batches:
        for number, (teach, own) in enumerate(zip(teachers, readers, strict=True)):
            features = teach(batch.images)
            if seen:
                seen(number, features, batch)
            for i in own:
                found[i].append(measure(variables[i], features, *batch))
        if masks:  # Those of the batch before: the host stays at most one ahead.
            for measured in found:
                measured[-2] = fetch(measured[-2])
        masks.append(np.asarray(fetch(batch.mask)))
    if not any(mask.any() for mask in masks):
        raise ValueError("There is nothing to reconstruct: no batch holds an image.")
    return [_reconstruction(fetch(measured), masks) for measured in found]


def _reconstruction(found: Sequence[Measured], masks: Sequence[np.ndarray]) -> Reconstruction:
    seen = np.concatenate(masks)
    losses = np.concatenate([each.losses for each in found]).astype(np.float64)[seen]
    floors = np.concatenate([each.floors for each in found]).astype(np.float64)[seen]
    pixels = np.stack([each.pixels for each in found]).astype(np.float64).sum(0) / len(losses)
    loss, floor = float(losses.mean()), float(floors.mean())
    return Reconstruction(loss, floor, loss - floor, losses, floors, pixels)


def plateau_slope(losses: Sequence[float], last: int) -> float:
    """Slope of the line through the last held-out losses, in nats per sub-pixel and evaluation.

    A decoder that still learns has a slope below 0, one that overfits above 0. A curve is flat
    enough to rank teachers when as many evaluations again, at this slope, would change a loss by
    much less than what lies between the teachers: abs(slope) * last well below their differences.

    Args:
        losses: Of all evaluations at equal distances, oldest first.
        last: How many of them count, at least 2.

    Raises:
        ValueError: If there are fewer.
    """
    if not 2 <= last <= len(losses):
        raise ValueError(f"A slope needs 2 to {len(losses)} evaluations, got last={last}.")
    return float(np.polyfit(np.arange(last), np.asarray(losses[-last:], np.float64), 1)[0])
