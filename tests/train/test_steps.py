"""The supervised step agrees with a gradient derived by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import losses, optim, sam
from remem_jax.data.images import augment
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Batch
from remem_jax.train import state, steps

RATE = 0.5


@pytest.fixture
def batch(rng: np.random.Generator) -> Batch:
    return Batch(
        jnp.asarray(rng.integers(0, 256, (6, 4, 4, 3)), jnp.uint8),
        jnp.asarray(rng.integers(0, 3, 6), jnp.int32),
        jnp.ones(6, bool),
    )


def linear(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
    """Applies a linear classifier and counts its calls in the statistics."""
    del key
    counted = {"calls": statistics["calls"] + 1}
    return images.reshape(images.shape[0], -1) @ params["kernel"], counted


def first(rng: np.random.Generator, tx: Any) -> state.State:
    params = {"kernel": jnp.asarray(rng.normal(size=(48, 3)), jnp.float32)}
    return state.create({"params": params, "calls": jnp.zeros((), jnp.int32)}, tx)


def make(tx: Any, **options: Any) -> Any:
    transform = augment.make_train_transform(size=4, crop_area=(1.0, 1.0), flip=False)
    options = {"loss": losses.cross_entropy, "mixing": Mixing()} | options
    step = steps.make_supervised_step(linear, tx, transform, key=jax.random.key(0), **options)
    return functools.partial(jax.jit(step), frozen={})


def loss(kernel: np.ndarray, batch: Batch) -> tuple[float, np.ndarray]:
    """Computes the cross-entropy of a linear classifier and its gradient, in float64."""
    x = np.asarray(batch.image, np.float64).reshape(6, -1) / 127.5 - 1
    logits = x @ kernel
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = np.eye(3)[np.asarray(batch.label)]
    return -np.log((probs * target).sum(-1)).mean(), x.T @ (probs - target) / 6


def test_the_step_follows_the_gradient(rng: np.random.Generator, batch: Batch) -> None:
    tx = optax.with_extra_args_support(optax.sgd(RATE))
    before = first(rng, tx)
    kernel = np.asarray(before.params["kernel"], np.float64)

    after, metrics = make(tx)(before, batch)

    value, gradient = loss(kernel, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(after.params["kernel"], kernel - RATE * gradient, atol=1e-5)


def test_with_sam_loss_and_statistics_come_from_the_unperturbed_pass(
    rng: np.random.Generator, batch: Batch
) -> None:
    tx = optax.with_extra_args_support(optax.sgd(RATE))
    before = first(rng, tx)
    kernel = np.asarray(before.params["kernel"], np.float64)

    after, metrics = make(tx, ascent=sam.sam(0.7))(before, batch)

    value, gradient = loss(kernel, batch)
    _, perturbed = loss(kernel + 0.7 * gradient / np.linalg.norm(gradient), batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["ascent_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(after.params["kernel"], kernel - RATE * perturbed, atol=1e-5)
    assert after.statistics["calls"] == 1


def test_training_does_not_change_the_pretrained_weights(rng: np.random.Generator) -> None:
    tx = optax.sgd(RATE)
    variables = {"params": {"kernel": jnp.ones(3)}}

    copy = state.create(variables, tx)
    jax.jit(lambda s: s._replace(params={"kernel": s.params["kernel"] + 1}), donate_argnums=0)(copy)

    np.testing.assert_array_equal(variables["params"]["kernel"], 1.0)


def test_frozen_parameters_only_affect_the_loss(rng: np.random.Generator, batch: Batch) -> None:
    def with_bias(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> Any:
        logits, statistics = linear(params, statistics, images, key)
        return logits + params["bias"][None], statistics

    tx = optim.sgd(lambda _: RATE, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=None)
    frozen = {"bias": jnp.asarray([0.0, 3.0, 0.0])}
    before = first(rng, tx)
    transform = augment.make_train_transform(size=4, crop_area=(1.0, 1.0), flip=False)
    step = steps.make_supervised_step(
        with_bias,
        tx,
        transform,
        key=jax.random.key(0),
        ascent=sam.sam(0.1),
        loss=losses.cross_entropy,
        mixing=Mixing(),
    )

    after, metrics = jax.jit(step)(before, batch, frozen)

    x = np.asarray(batch.image, np.float64).reshape(6, -1) / 127.5 - 1

    def gradient(kernel: np.ndarray) -> np.ndarray:
        probs = np.exp(x @ kernel + np.asarray(frozen["bias"]))
        probs /= probs.sum(-1, keepdims=True)
        return x.T @ (probs - np.eye(3)[np.asarray(batch.label)]) / 6

    kernel = np.asarray(before.params["kernel"], np.float64)
    norm = np.linalg.norm(gradient(kernel))  # Over the trainable parameters only.
    expected = kernel - RATE * gradient(kernel + 0.1 * gradient(kernel) / norm)
    np.testing.assert_allclose(after.params["kernel"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["ascent_norm"], norm, rtol=1e-4)
    assert set(after.params) == {"kernel"}


def test_mixed_images_have_mixed_labels(rng: np.random.Generator, batch: Batch) -> None:
    tx = optax.with_extra_args_support(optax.sgd(RATE))
    before = first(rng, tx)
    kernel = np.asarray(before.params["kernel"], np.float64)

    after, metrics = make(tx, mixing=Mixing(mixup=0.5))(before, batch)

    x = np.asarray(batch.image, np.float64).reshape(6, -1) / 127.5 - 1
    target = np.eye(3)[np.asarray(batch.label)]
    losses, kernels = [], []
    for share in np.linspace(0.5, 1, 5001):  # The share was drawn at random; one of these matches.
        mixed, labels = (share * v + (1 - share) * np.roll(v, 1, axis=0) for v in (x, target))
        logits = mixed @ kernel
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        losses.append(-(labels * np.log(probs)).sum(-1).mean())
        kernels.append(kernel - RATE * mixed.T @ (probs - labels) / 6)
    best = int(np.argmin(np.abs(np.asarray(losses) - float(metrics["loss"]))))
    np.testing.assert_allclose(after.params["kernel"], kernels[best], atol=1e-3)
    assert best < 4999
