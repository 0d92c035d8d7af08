"""SAM where it is known in closed form, against optax's and against two passes by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import optim, sam


def loss(params: Any) -> jax.Array:
    """A function with curvature everywhere, of two leaves."""
    return jnp.sum(jnp.sin(params["a"])) + jnp.sum(params["a"] ** 2) * jnp.sum(params["b"] ** 4)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"a": jnp.asarray([0.3, -0.7]), "b": jnp.asarray([[1.1], [0.4]])}


grad: Callable[[Any], Any] = jax.grad(loss)


@pytest.mark.parametrize("rho", [0.0, 0.1, 3.0])
def test_gradient_is_taken_at_distance_rho_uphill(rho: float) -> None:
    # For |w|^2 / 2 the gradient is the point itself, so SAM adds rho along it.
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    tx = sam.sam(rho)

    grads: Any
    grads, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p: p)

    np.testing.assert_allclose(grads["a"], [3.0 + rho * 3 / 5], rtol=1e-6)
    np.testing.assert_allclose(grads["b"], [4.0 + rho * 4 / 5], rtol=1e-6)


def links() -> list[Any]:
    """Clipping, weight decay, momentum: what may stand behind SAM in a chain."""
    return [
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.01),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ]


def test_a_chain_with_sam_equals_optax_contrib_sam(params: Any) -> None:
    ours = optax.chain(sam.sam(0.3), *links())
    theirs = optax.contrib.sam(
        optax.chain(*links()),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.3)),
        sync_period=2,
        opaque_mode=True,
    )
    a, a_state, b, b_state = params, ours.init(params), params, theirs.init(params)

    for _ in range(5):
        updates, a_state = ours.update(grad(a), a_state, a, grad_fn=grad)
        a = optax.apply_updates(a, updates)
        updates, b_state = theirs.update(grad(b), b_state, b, grad_fn=lambda p, _: grad(p))
        b = optax.apply_updates(b, updates)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_the_teachers_optimizer_is_two_passes_by_hand(params: Any) -> None:
    climb = sam.sam(0.3)
    tx = optim.sgd(lambda _: 0.1, momentum=0.9, weight_decay=0.01, clip_norm=0.5, nesterov=False)
    w, state = params, tx.init(params)
    v = np.concatenate([np.ravel(params["a"]), np.ravel(params["b"])]).astype(np.float64)
    trace = np.zeros(4)

    def flat_grad(v: np.ndarray) -> np.ndarray:
        a, b = v[:2], v[2:]
        return np.concatenate([np.cos(a) + 2 * a * np.sum(b**4), 4 * b**3 * np.sum(a**2)])

    for _ in range(5):
        grads, _ = climb.update(grad(w), climb.init(w), w, grad_fn=grad)
        updates, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, updates)
        ascent = flat_grad(v)
        descent = flat_grad(v + 0.3 * ascent / np.linalg.norm(ascent))
        descent *= min(1.0, 0.5 / np.linalg.norm(descent))
        trace = 0.9 * trace + descent + 0.01 * v
        v = v - 0.1 * trace

    np.testing.assert_allclose(np.concatenate([np.ravel(w["a"]), np.ravel(w["b"])]), v, rtol=1e-5)


def test_a_zero_gradient_gives_no_nan() -> None:
    params = {"a": jnp.zeros(3)}
    tx = optax.chain(sam.sam(0.5), optax.sgd(0.1))

    updates: Any
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p: p)

    np.testing.assert_array_equal(updates["a"], 0.0)


def test_the_ascent_norm_is_that_of_the_clean_gradient(params: Any) -> None:
    tx = optax.chain(
        sam.sam(0.3),
        optim.sgd(lambda _: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None),
    )

    _, state = tx.update(grad(params), tx.init(params), params, grad_fn=grad)

    expected = np.sqrt(sum(np.sum(np.asarray(g) ** 2) for g in jax.tree.leaves(grad(params))))
    assert sam.ascent_norm(state) == pytest.approx(expected, rel=1e-6)


def test_without_sam_there_is_no_ascent_norm(params: Any) -> None:
    tx = optim.sgd(lambda _: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None)
    assert sam.ascent_norm(tx.init(params)) is None


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0, got -0\.1"):
        sam.sam(-0.1)


def test_sam_without_grad_fn_says_what_it_needs(params: Any) -> None:
    tx = sam.sam(0.1)
    with pytest.raises(ValueError, match="grad_fn"):
        tx.update(grad(params), tx.init(params), params)
