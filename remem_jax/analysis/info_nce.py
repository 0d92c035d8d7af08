"""InfoNCE: a lower bound on mutual information without a decoder, to compare with the decoder's.

It cannot exceed log(batch size), and features easily identify their image within a batch, so
without noise it measures little but the batch size. Therefore I(X; F + N) is estimated here, with
Gaussian noise N so large that only a few nats remain. This quantity differs from the one that a
decoder bounds, and may rank teachers differently.

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

_STATISTICS = "standardising"  # Collection with running means and variances of the inputs.
_MOMENTUM = 0.9  # Decay of the running means and variances.


class InputSpec(NamedTuple):
    """How the inputs of a critic are computed from features and images.

    Attributes:
        grid: Side of the grid to which the tokens are average-pooled.
        blocks: Side of the grid to which the image is average-pooled.
        noise: Standard deviation of the noise that is added to each pooled feature, relative to
            the feature's standard deviation over images. 0 measures little but the batch size.
    """

    grid: int
    blocks: int
    noise: float


def bound(scores: Scores) -> Float[Array, ""]:
    """Computes the InfoNCE bound: how well features identify their image in a batch, in nats.

    Its expectation is at most I(F; X) for any critic, and its value at most log(batch size). A
    value within a nat of that indicates that the batch is too small. The estimate is the mean over
    held-out batches; on batches that the critic was trained on, it is not a bound.

    Args:
        scores: Scores of a critic for the features of row i and the image of column j.

    Returns:
        log(batch size) minus the cross-entropy of the diagonal; 0 if all scores are equal.
    """
    positive = jnp.diagonal(jax.nn.log_softmax(scores.astype(jnp.float32), axis=1))
    return jnp.log(jnp.float32(len(scores))) + jnp.mean(positive)


def init_critic(
    key: Key, *, features: int, summaries: int, hidden: int, embedding: int
) -> dict[str, Any]:
    """Initialises two networks with one hidden layer: LeCun normal kernels, zero biases.

    Args:
        key: Random key of the kernels.
        features: Number of features.
        summaries: Number of values of a summary, the pooled image.
        hidden: Width of the hidden layers.
        embedding: Width of the embeddings.
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
    """Computes the scores of all pairs: scaled dot products, initially of about unit size."""
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


def pool(
    spec: InputSpec, features: Grids, images: Images
) -> tuple[Float[Array, "batch value"], Summaries]:
    """Pools features and images to a critic's inputs, before standardisation and noise.

    Raises:
        ValueError: If the sides of the token grid or of the image are not multiples of the spec's.
    """
    return _blocks(features, spec.grid, "Grids"), _blocks(images, spec.blocks, "Images")


def _blocks(
    maps: Float[Array, "batch height width channel"], side: int, name: str
) -> Float[Array, "batch value"]:
    """Computes the means of side x side blocks."""
    batch, height, width, channels = maps.shape
    if height % side or width % side:
        raise ValueError(f"{name} of {height} x {width} do not divide into {side} x {side} blocks.")
    blocks = maps.reshape(batch, side, height // side, side, width // side, channels)
    return jnp.mean(blocks.astype(jnp.float32), axis=(2, 4)).reshape(batch, -1)


def init(key: Key, spec: InputSpec, *, width: int, hidden: int, embedding: int) -> Variables:
    """Initialises the variables of a critic.

    Args:
        key: Random key of the kernels.
        spec: Spec of the inputs.
        width: Number of features of a token.
        hidden: See `init_critic`.
        embedding: See `init_critic`.
    """
    features = spec.grid**2 * width
    params = init_critic(
        key,
        features=features,
        summaries=spec.blocks**2 * 3,
        hidden=hidden,
        embedding=embedding,
    )
    widths = {"features": features, "summaries": spec.blocks**2 * 3}
    moments = {
        name: {"mean": jnp.zeros((1, size)), "variance": jnp.ones((1, size))}
        for name, size in widths.items()
    }
    return {"params": params, _STATISTICS: moments}


def make_critic_step(
    tx: optax.GradientTransformation, spec: InputSpec, *, key: Key
) -> Callable[[State, Array, Array], tuple[State, Metrics]]:
    """Builds the step that trains a critic to maximise its bound.

    Args:
        tx: The optimiser.
        spec: Spec of the critic's inputs.
        key: Random key of the critics (see `random_streams`); each step draws new noise.

    Returns:
        A pure step `(state, features, targets) -> (state, metrics)`, like a decoder's. The metrics
        are "loss", the negative bound, and "fault", of `finite.fault`. The caller jits it.
    """

    def step(state: State, features: Grids, targets: Images) -> tuple[State, Metrics]:
        values, summaries = pool(spec, features, targets)
        current = {"features": _moments(values), "summaries": _moments(summaries)}
        noise_key = random_streams.within(key, state.step, "noise")
        inputs = _critic_inputs(values, summaries, current, spec, noise_key)

        def loss(params: Params) -> Float[Array, ""]:
            return -bound(critic(params, *inputs))

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # An exponential moving average that starts with the first batch.
        decay = jnp.where(state.step == 0, 0.0, _MOMENTUM)
        moments = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, state.statistics[_STATISTICS], current
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
    spec: InputSpec, *, key: Key
) -> Callable[[Variables, Array, Array], Float[Array, ""]]:
    """Builds the function that computes a trained critic's bound for a batch, in nats.

    Args:
        spec: Spec of the critic's inputs.
        key: Random key of the noise.

    Returns:
        A pure function of the critic's variables, features and targets. The caller wraps it in
        `jax.jit`. The estimate is its mean over held-out batches of equal size.
    """

    def estimate(variables: Variables, features: Grids, targets: Images) -> Float[Array, ""]:
        values, summaries = pool(spec, features, targets)
        inputs = _critic_inputs(values, summaries, variables[_STATISTICS], spec, key)
        return bound(critic(variables["params"], *inputs))

    return estimate


def _moments(values: Float[Array, "batch value"]) -> dict[str, Float[Array, "1 value"]]:
    return {
        "mean": jnp.mean(values, axis=0, keepdims=True),
        "variance": jnp.var(values, axis=0, keepdims=True),
    }


def _critic_inputs(
    values: Features, summaries: Summaries, moments: Params, spec: InputSpec, key: Key
) -> tuple[Features, Summaries]:
    """Standardises both inputs and adds noise to the features, rescaled to unit variance."""
    standard = _standardised(values, moments["features"])
    noisy = standard + spec.noise * jax.random.normal(key, standard.shape)
    return noisy / jnp.sqrt(1 + spec.noise**2), _standardised(summaries, moments["summaries"])


def _standardised(
    values: Float[Array, "batch value"], moments: Params
) -> Float[Array, "batch value"]:
    return (values - moments["mean"]) * jax.lax.rsqrt(moments["variance"] + 1e-6)
