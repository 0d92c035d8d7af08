"""Dropout and stochastic depth of students have timm's rates and places."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import inverted_residual, regnet, resnet
from remem_jax.models.architectures import Architecture, Head, Row
from tests.oracles import peers

NAMES = ["resnet18", "resnet26d", "regnety_004", "efficientnet_lite0", "mobilenetv4_conv_small"]
HEADS = {
    "fc": resnet.make(depths=(1,), classes=64, dropout=0.5),
    "head_fc": regnet.make(regnet.Architecture((1, 1), (8, 64), 8), classes=64, dropout=0.5),
    "classifier": inverted_residual.make(
        Architecture(8, ((Row("conv", 8),),), "relu", head=Head(64)), classes=64, dropout=0.5
    ),
}


def blocks_rates(model: nn.Module) -> list[float]:
    """Returns the rate of stochastic depth of each block of a student."""
    rates: dict[tuple[str, ...], float] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        block = context.module
        if hasattr(block, "drop_path") and hasattr(block, "stride"):
            rates[block.path] = block.drop_path
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return list(rates.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_rates_of_stochastic_depth_match_timm(name: str) -> None:
    timm_name = models.STUDENTS[name].timm
    with peers.torch().device("meta"):
        peer = peers.timm().create_model(timm_name, drop_path_rate=0.3)
    drops = [m.drop_path for m in peer.modules() if hasattr(m, "drop_path")]
    expected = [getattr(drop, "drop_prob", 0.0) for drop in drops]

    actual = blocks_rates(models.make(name, classes=2, drop_path=0.3))

    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("layer", HEADS)
def test_dropout_zeroes_features_before_the_classifier_in_training(layer: str) -> None:
    maps = jnp.ones((8, 2, 2, 64))
    params: dict[str, Any] = {layer: {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}}

    def logits(train: bool) -> Any:
        key = {"dropout": jax.random.key(0)}
        model = HEADS[layer]
        return model.apply({"params": params}, maps, train=train, rngs=key, method="head")

    dropped = np.asarray(logits(True))

    assert set(np.unique(dropped)) == {0.0, 2.0}  # The features that are kept are doubled.
    assert 0.4 < dropped.mean() / 2 < 0.6
    np.testing.assert_array_equal(logits(False), 1.0)


@pytest.mark.parametrize(
    "block",
    [resnet.BasicBlock(8, 1), resnet.Bottleneck(2, 1), regnet.Block(8, 1, 4)],
    ids=lambda block: type(block).__name__,
)
def test_a_dropped_block_returns_its_input(block: Any, key: jax.Array) -> None:
    maps = jax.random.uniform(key, (16, 2, 2, 8))  # Not negative: a ReLU follows.
    variables = block.init(key, maps, train=False)
    ones = jax.tree.map(jnp.ones_like, variables["params"])  # The last scale is zero at first.
    variables |= {"params": jax.tree.map(jnp.add, variables["params"], ones)}

    def update(rate: float) -> np.ndarray:
        out, _ = block.clone(drop_path=rate).apply(
            variables, maps, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return np.abs(np.asarray(out - maps)).max((1, 2, 3))

    changes = update(0.5)

    assert (update(0.0) > 1e-3).all()
    assert 0 < (changes == 0).sum() < 16
