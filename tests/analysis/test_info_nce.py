"""InfoNCE, on channels of known information and against a slow loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from remem_jax.analysis import info_nce, mutual_information
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


def test_a_sure_critic_gives_the_logarithm_of_the_batch() -> None:
    actual = info_nce.bound(1000 * jnp.eye(7))

    np.testing.assert_allclose(actual, np.log(7), rtol=1e-6)


def test_a_critic_that_tells_nothing_gives_nothing() -> None:
    np.testing.assert_allclose(info_nce.bound(jnp.ones((5, 5))), 0.0, atol=1e-6)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_the_best_critic_gives_the_information_of_gaussians(
    rng: np.random.Generator, rho: float
) -> None:
    scores = [
        channels.gaussian_scores(*channels.correlated_gaussians(rng, 64, DIMENSIONS, rho), rho)
        for _ in range(20)
    ]

    found = np.mean([float(info_nce.bound(jnp.asarray(each, jnp.float32))) for each in scores])

    # 1,280 pairs, whose log-ratios spread by about rho * sqrt(2); a batch of 64 costs some.
    assert found == pytest.approx(channels.gaussian_information(rho, DIMENSIONS), abs=0.1)


def test_a_trained_critic_comes_near_the_information_of_gaussians_from_below(
    rng: np.random.Generator,
) -> None:
    tx = mutual_information.adamw(0.01, betas=(0.9, 0.999), weight_decay=0.0, epsilon=1e-8)
    params = info_nce.init_critic(
        jax.random.key(0), features=DIMENSIONS, summaries=DIMENSIONS, hidden=32, embedding=8
    )
    step, opt_state = jax.jit(info_nce.make_critic_step(tx)), tx.init(params)
    measure = jax.jit(lambda params, *pair: info_nce.bound(info_nce.critic(params, *pair)))
    for _ in range(300):
        params, opt_state, _ = step(params, opt_state, *draw(rng, 0.8))

    found = np.mean([float(measure(params, *draw(rng, 0.8))) for _ in range(50)])

    information = channels.gaussian_information(0.8, DIMENSIONS)  # 1.02 nats.
    assert information - 0.15 < found < information + 0.03  # Of 6,400 pairs, 2 deviations.


def test_summaries_are_means_of_blocks(rng: np.random.Generator) -> None:
    images = jnp.asarray(rng.uniform(size=(2, 4, 4, 3)), jnp.float32)

    actual = info_nce.summaries(images, 2)

    expected = images[1, :2, 2:].mean((0, 1))  # The block above on the right.
    np.testing.assert_allclose(actual[1].reshape(2, 2, 3)[0, 1], expected, rtol=1e-6)


def test_a_side_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="4 x 4 pixels have no 3 x 3 blocks"):
        info_nce.summaries(jnp.zeros((1, 4, 4, 3)), 3)
