"""Rematerialisation gives the same gradients with less memory and no more matrix products."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import rematerialisation, tuning, vit
from remem_jax.models.rotary import Rotary
from remem_jax.train import flops

SIZE = vit.Size(patch=4, features=16, depth=2, heads=2)
HYBRID = vit.Size(patch=1, features=16, depth=1, heads=2, stem=(1,))
TUNINGS = {
    "full": {},
    "lora": {"rank": 2},
    "adapter_houlsby": {"reduction": 4},
    "linear_probe": {},
}
CASES: dict[str, dict[str, Any]] = {
    "scanned": {},
    "unrolled": {"scan": False, "dropout": 0.3, "pruned_mlp": 1},
    "adapters": {"tuning": "adapter_houlsby"},
    "hybrid": {"size": HYBRID, "side": 16},
}


def make(
    recompute: str,
    *,
    size: vit.Size = SIZE,
    side: int = 16,
    tuning: str = "full",
    dtype: Any = jnp.float32,
    **options: Any,
) -> tuple[Callable[[Any], jax.Array], Any]:
    """Returns the loss of a ViT as a function of its trainable parameters, and these."""
    rng = np.random.default_rng(0)
    model = vit.make(variant=size, classes=5, rematerialise=recompute, **options)
    tuned = _tuning(tuning)
    params = tuned.add(
        jax.tree.map(lambda s: jnp.zeros(s.shape), models.shapes(model, side)), jax.random.key(0)
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), dtype), params)
    trained, frozen = _split(params, tuned)
    images = jnp.asarray(rng.uniform(-1, 1, (2, side, side, 3)), dtype)
    apply = tuned.wrap(models.train_apply(model))

    def loss(trained: Any) -> jax.Array:
        logits, _ = apply(_join(trained, frozen), {}, images, jax.random.key(1))
        return jnp.sum(jnp.sin(logits))

    return loss, trained


def _tuning(method: str) -> tuning.Tuning:
    return tuning.make(method, **TUNINGS[method])


def _split(params: Any, tuned: tuning.Tuning) -> Any:
    return tuning.split(params, tuned.trains)


def _join(trained: Any, frozen: Any) -> Any:
    return tuning.join(trained, frozen)


def residual_bytes(loss: Callable[[Any], jax.Array], params: Any) -> int:
    """Returns the bytes of activations stored for the backward pass."""
    pulled = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pulled))


@pytest.mark.parametrize(
    ("case", "recompute"), [*((case, "elementwise") for case in CASES), ("hybrid", "blocks")]
)
def test_loss_and_gradients_equal_those_without_rematerialisation(
    case: str, recompute: str
) -> None:
    loss, params = make("nothing", **CASES[case])
    stored = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
    loss, params = make(recompute, **CASES[case])

    actual = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), actual, stored
    )


@pytest.mark.parametrize("case", CASES)
def test_each_option_stores_less_than_the_previous_one(case: str) -> None:
    actual = [
        residual_bytes(*make(recompute, **CASES[case]))
        for recompute in rematerialisation.RECOMPUTED
    ]

    assert all(more > less for more, less in itertools.pairwise(actual))


def operations(recompute: str, **options: Any) -> float:
    loss, params = make(recompute, **options)
    return flops.count(jax.grad(loss), params)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": False},
        {"dropout": 0.3},
        {"tuning": "lora"},
        {"layer_scale": True},
        {"qk_norm": True, "attention_norm": True, "mlp_norm": True, "norm": "rms"},
        {"gated": True, "rope": Rotary("mixed"), "qkv_bias": "", "has_bias": False},
    ],
    ids=str,
)
def test_elementwise_recomputes_no_matrix_product_except_the_scores(
    options: dict[str, Any],
) -> None:
    more = operations("elementwise", **options) - operations("nothing", **options)

    images, tokens = 2, 17  # The tokens include [CLS].
    assert more == SIZE.depth * 2 * images * tokens**2 * SIZE.features


def test_adapters_are_not_recomputed() -> None:
    case = CASES["adapters"]
    more = operations("elementwise", **case) - operations("nothing", **case)

    assert more <= SIZE.depth * 2 * 2 * 17**2 * SIZE.features


def test_blocks_are_recomputed_once() -> None:
    forward = flops.count(*make("nothing"))
    more = operations("blocks") - operations("nothing")

    # Patches, head and the last product of each block are not recomputed: no gradient needs them.
    assert 0.5 * forward < more < forward


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="rematerialise must be one of"):
        vit.make(variant=SIZE, classes=5, rematerialise="everything")
    with pytest.raises(ValueError, match=r"must be one of query, .*; got 'scores'"):
        rematerialisation.kept("scores", jnp.zeros(1))
