"""InfoNCE: a lower bound of mutual information that needs no decoder, to hold the other against.

It cannot exceed log(batch), and an image of a batch is easily told by its features: on a teacher
it measures little but the batch. It is for channels of few nats, such as features with noise, and
for checks of the decoder where the exact value is known.

Source: van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4 and appendix A.1;
Poole et al. 2019, https://arxiv.org/abs/1905.06922, equation 10.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from remem_jax.records import Key, Params

Scores = Float[Array, "batch batch"]
Features = Float[Array, "batch feature"]
Summaries = Float[Array, "batch summary"]

# (params, state of the optimiser, features, summaries) -> (params, state, bound before the step)
CriticStep = Callable[[Params, Any, Array, Array], tuple[Params, Any, Array]]


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


def summaries(
    images: Float[Array, "batch height width channel"], side: int
) -> Float[Array, "batch summary"]:
    """Images as a critic sees them: means of side x side blocks, which lose information.

    What is found of a summary is a lower bound for the image too.
    """
    batch, height, width, channels = images.shape
    if height % side or width % side:
        raise ValueError(f"Images of {height} x {width} pixels have no {side} x {side} blocks.")
    blocks = images.reshape(batch, side, height // side, side, width // side, channels)
    return jnp.mean(blocks.astype(jnp.float32), axis=(2, 4)).reshape(batch, -1)


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
    """Scores of all pairs: products of their embeddings."""
    return _embedded(params["features"], features) @ _embedded(params["summaries"], summaries).T


def _embedded(
    network: list[dict[str, Array]], values: Float[Array, "batch width"]
) -> Float[Array, "batch embedding"]:
    first, last = network
    hidden = jax.nn.gelu(values @ first["kernel"] + first["bias"])
    return hidden @ last["kernel"] + last["bias"]


def make_critic_step(tx: optax.GradientTransformation) -> CriticStep:
    """Builds the step that trains a critic, by raising its bound; pure, the caller jits it."""

    def step(
        params: Params, opt_state: Any, features: Features, summaries: Summaries
    ) -> tuple[Params, Any, Float[Array, ""]]:
        def loss(params: Params) -> Float[Array, ""]:
            return -bound(critic(params, features, summaries))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, -value

    return step
