"""InfoNCE, for channels of known information and against a slow loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from remem_jax.analysis import info_nce, mutual_information
from remem_jax.train import state
from tests.oracles import channels

pytestmark = pytest.mark.usefixtures("mixed_dtypes")
BATCH, DIMENSIONS = 128, 2


def draw(rng: np.random.Generator, rho: float) -> tuple[Array, Array]:
    x, y = channels.correlated_gaussians(rng, BATCH, DIMENSIONS, rho)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def test_the_bound_agrees_with_a_slow_loop(rng: np.random.Generator) -> None:
    scores = rng.normal(0, 2, (6, 6))

    actual = info_nce.bound(jnp.asarray(scores, jnp.float32))

    np.testing.assert_allclose(actual, channels.info_nce(scores), rtol=1e-5)


def test_a_perfect_critic_gives_the_logarithm_of_the_batch_size() -> None:
    actual = info_nce.bound(1000 * jnp.eye(7))

    np.testing.assert_allclose(actual, np.log(7), rtol=1e-6)


def test_a_constant_critic_gives_zero() -> None:
    np.testing.assert_allclose(info_nce.bound(jnp.ones((5, 5))), 0.0, atol=1e-6)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_the_best_critic_gives_the_information_of_gaussians(
    rng: np.random.Generator, rho: float
) -> None:
    scores = [
        channels.gaussian_scores(*channels.correlated_gaussians(rng, 64, DIMENSIONS, rho), rho)
        for _ in range(20)
    ]

    estimated = np.mean([float(info_nce.bound(jnp.asarray(each, jnp.float32))) for each in scores])

    # 1,280 pairs, whose log-ratios spread by about rho * sqrt(2); a batch of 64 costs some.
    assert estimated == pytest.approx(channels.gaussian_information(rho, DIMENSIONS), abs=0.1)


def test_a_trained_critic_comes_near_the_information_of_gaussians_from_below(
    rng: np.random.Generator,
) -> None:
    # The features are the image itself; with noise, each of its three values is a channel.
    spec = info_nce.InputSpec(grid=1, blocks=1, noise=0.75)
    tx = mutual_information.adamw(0.01, betas=(0.9, 0.999), weight_decay=0.0, epsilon=1e-8)
    variables = info_nce.init(jax.random.key(0), spec, width=3, hidden=32, embedding=8)
    step = jax.jit(info_nce.make_critic_step(tx, spec, key=jax.random.key(1)))
    trained = state.create(variables, tx)

    def images() -> Array:  # Mean and scale do not matter, because features are standardised.
        return jnp.asarray(5 + 0.1 * rng.normal(size=(BATCH, 1, 1, 3)), jnp.float32)

    for _ in range(300):
        batch = images()
        trained, _ = step(trained, batch, 10 * (batch - 5))

    estimate = jax.jit(
        lambda variables, key, batch: info_nce.make_estimate(spec, key=key)(
            variables, batch, 10 * (batch - 5)
        )
    )
    keys = jax.random.split(jax.random.key(2), 50)
    estimated = np.mean([float(estimate(trained.variables, key, images())) for key in keys])

    information = channels.gaussian_information(1 / np.hypot(1, spec.noise), 3)  # 1.53 nats.
    assert (
        information - 0.15 < estimated < information + 0.03
    )  # Two standard deviations for 6,400 pairs.


def test_inputs_of_a_critic_are_means_of_blocks(rng: np.random.Generator) -> None:
    images = jnp.asarray(rng.uniform(size=(2, 4, 4, 3)), jnp.float32)
    tokens = jnp.asarray(rng.uniform(size=(2, 2, 2, 5)), jnp.float32)
    spec = info_nce.InputSpec(grid=1, blocks=2, noise=1.0)

    features, summaries = info_nce.pool(spec, tokens, images)

    np.testing.assert_allclose(features, np.asarray(tokens).mean((1, 2)), rtol=1e-6)
    expected = images[1, :2, 2:].mean((0, 1))  # The upper right block.
    np.testing.assert_allclose(summaries[1].reshape(2, 2, 3)[0, 1], expected, rtol=1e-6)


def test_blocks_that_do_not_divide_the_image_are_refused() -> None:
    spec = info_nce.InputSpec(grid=1, blocks=3, noise=1.0)
    with pytest.raises(ValueError, match="Images of 4 x 4 do not divide into 3 x 3 blocks"):
        info_nce.pool(spec, jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 4, 4, 3)))
