"""InfoNCE: a lower bound of mutual information that needs no decoder, to hold the other against.

It cannot exceed log(batch), and an image of a batch is easily told by its features: without noise
it measures little but the batch. So what is estimated here is I(X; F + N), with Gaussian noise N so
large that few nats are left: what of the features survives the noise. That is another quantity
than what a decoder bounds, and need not rank teachers as it does.

Source: van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4 and appendix A.1;
Poole et al. 2019, https://arxiv.org/abs/1905.06922, equation 10.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from remem_jax import random_streams
from remem_jax.records import Key, Metrics, Params, Variables
from remem_jax.train import finite
from remem_jax.train.state import State

Scores = Float[Array, "batch batch"]
Features = Float[Array, "batch feature"]
Summaries = Float[Array, "batch summary"]
Grids = Float[Array, "batch side side feature"]
Images = Float[Array, "batch height width channel"]

_STATISTICS = "standardising"  # Collection of the means and variances of features.
_MOMENTUM = 0.9  # Of these.


class Reading(NamedTuple):
    """What a critic is given of features and of images.

    Attributes:
        grid: Side of the grid to which the features' tokens are averaged.
        blocks: Side of the grid of blocks whose means stand for an image.
        noise: Standard deviation of the noise that is added to each averaged feature, in units of
            that feature's own over the images. 0 measures little but the batch.
    """

    grid: int
    blocks: int
    noise: float


def bound(scores: Scores) -> Float[Array, ""]:
    """How well features find the image they are of among those of the batch, in nats.

    Its expectation is at most I(F; X), whatever the critic, and no batch gives more than
    log(batch). A bound within a nat of that is a sign that the batch is too small. Its mean over
    held-out batches is the estimate; on batches that the critic was trained on it is no bound.

    Args:
        scores: A critic's, of the features of row i with the image of column j.

    Returns:
        log(batch) less the cross-entropy of the diagonal; 0 if all scores are equal.
    """
    own = jnp.diagonal(jax.nn.log_softmax(scores.astype(jnp.float32), axis=1))
    return jnp.log(jnp.float32(len(scores))) + jnp.mean(own)


def init_critic(
    key: Key, *, features: int, summaries: int, hidden: int, embedding: int
) -> dict[str, Any]:
    """First parameters of two networks of one hidden layer: LeCun's kernels, no biases yet.

    Args:
        key: Source of the kernels.
        features: Width of the features.
        summaries: Width of the summaries.
        hidden: Width of the hidden layers.
        embedding: Width of what both are embedded in.
    """
    normal = jax.nn.initializers.lecun_normal()
    widths = {"features": features, "summaries": summaries}

    def network(key: Key, width: int) -> list[dict[str, Array]]:
        sizes = ((width, hidden), (hidden, embedding))
        return [
            {"kernel": normal(key, size), "bias": jnp.zeros((1, size[1]))}
            for key, size in zip(jax.random.split(key), sizes, strict=True)
        ]

    keys = jax.random.split(key)
    return {
        name: network(key, width) for key, (name, width) in zip(keys, widths.items(), strict=True)
    }


def critic(params: Params, features: Features, summaries: Summaries) -> Scores:
    """Scores of all pairs: products of their embeddings, of about unit size at first."""
    first, second = (
        _embedded(params[name], values)
        for name, values in (("features", features), ("summaries", summaries))
    )
    return first @ second.T / jnp.sqrt(jnp.float32(first.shape[1]))


def _embedded(
    network: list[dict[str, Array]], values: Float[Array, "batch width"]
) -> Float[Array, "batch embedding"]:
    first, last = network
    hidden = jax.nn.gelu(values @ first["kernel"] + first["bias"])
    return hidden @ last["kernel"] + last["bias"]


def read(
    reading: Reading, features: Grids, images: Images
) -> tuple[Float[Array, "batch value"], Summaries]:
    """What a critic is given, but for noise and scale.

    Raises:
        ValueError: If the grids do not divide that of the tokens, or the image.
    """
    return _blocks(features, reading.grid, "Grids"), _blocks(images, reading.blocks, "Images")


def _blocks(
    maps: Float[Array, "batch height width channel"], side: int, name: str
) -> Float[Array, "batch value"]:
    """Means of side x side blocks."""
    batch, height, width, channels = maps.shape
    if height % side or width % side:
        raise ValueError(f"{name} of {height} x {width} have no {side} x {side} blocks.")
    blocks = maps.reshape(batch, side, height // side, side, width // side, channels)
    return jnp.mean(blocks.astype(jnp.float32), axis=(2, 4)).reshape(batch, -1)


def init(key: Key, reading: Reading, *, width: int, hidden: int, embedding: int) -> Variables:
    """First variables of a critic.

    Args:
        key: Source of the kernels.
        reading: What it is given.
        width: Of a token.
        hidden: See `init_critic`.
        embedding: See `init_critic`.
    """
    features = reading.grid**2 * width
    params = init_critic(
        key,
        features=features,
        summaries=reading.blocks**2 * 3,
        hidden=hidden,
        embedding=embedding,
    )
    widths = {"features": features, "summaries": reading.blocks**2 * 3}
    moments = {
        name: {"mean": jnp.zeros((1, size)), "variance": jnp.ones((1, size))}
        for name, size in widths.items()
    }
    return {"params": params, _STATISTICS: moments}


def make_critic_step(
    tx: optax.GradientTransformation, reading: Reading, *, key: Key
) -> Callable[[State, Array, Array], tuple[State, Metrics]]:
    """Builds the step that trains a critic, by raising its bound.

    Args:
        tx: Turns gradients into updates.
        reading: What the critic is given.
        key: Of the critics; see `random_streams`. Each step has noise of its own.

    Returns:
        A pure step `(state, features, targets) -> (state, metrics)`, as that of a decoder. The
        metric "loss" is minus the bound, "fault" that of `finite.fault`. The caller jits it.
    """

    def step(state: State, features: Grids, targets: Images) -> tuple[State, Metrics]:
        values, summed = read(reading, features, targets)
        own = {"features": _moments(values), "summaries": _moments(summed)}
        noise_key = random_streams.within(key, state.step, "noise")
        seen = _seen(values, summed, own, reading, noise_key)

        def loss(params: Params) -> Float[Array, ""]:
            return -bound(critic(params, *seen))

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The first batch's own, then a mean that forgets.
        kept = jnp.where(state.step == 0, 0.0, _MOMENTUM)
        moments = jax.tree.map(
            lambda old, new: kept * old + (1 - kept) * new, state.statistics[_STATISTICS], own
        )
        fault = finite.fault(
            {
                "data": targets,
                "parameters": state.params,
                "teacher": features,
                "loss": value,
                "gradient": grads,
                "update": (params, moments, opt_state),
            }
        )
        return State(state.step + 1, params, {_STATISTICS: moments}, opt_state), {
            "loss": value,
            "fault": fault,
        }

    return step


def make_estimate(
    reading: Reading, *, key: Key
) -> Callable[[Variables, Array, Array], Float[Array, ""]]:
    """Builds the function from a critic's variables, features and targets to the bound, in nats.

    Args:
        reading: What the critic is given.
        key: Source of the noise.

    Returns:
        A pure function. The caller wraps it in `jax.jit`; its mean over held-out batches of one
        size is the estimate.
    """

    def estimate(variables: Variables, features: Grids, targets: Images) -> Float[Array, ""]:
        values, summed = read(reading, features, targets)
        seen = _seen(values, summed, variables[_STATISTICS], reading, key)
        return bound(critic(variables["params"], *seen))

    return estimate


def _moments(values: Float[Array, "batch value"]) -> dict[str, Float[Array, "1 value"]]:
    return {
        "mean": jnp.mean(values, axis=0, keepdims=True),
        "variance": jnp.var(values, axis=0, keepdims=True),
    }


def _seen(
    values: Features, summed: Summaries, moments: Params, reading: Reading, key: Key
) -> tuple[Features, Summaries]:
    """Features with noise, and summaries; each value of both of about unit variance."""
    features, summaries = moments["features"], moments["summaries"]
    standard = _standardised(values, features)
    noisy = standard + reading.noise * jax.random.normal(key, standard.shape)
    return noisy / jnp.sqrt(1 + reading.noise**2), _standardised(summed, summaries)


def _standardised(
    values: Float[Array, "batch value"], moments: Params
) -> Float[Array, "batch value"]:
    return (values - moments["mean"]) * jax.lax.rsqrt(moments["variance"] + 1e-6)
