"""The part of a training step that is reported as not finite, for a linear model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import losses
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Batch, Hyperparameters, Outputs
from remem_jax.train import finite, state, steps, student_losses

pytestmark = pytest.mark.usefixtures("mixed_dtypes")
NAN, INFINITY = jnp.nan, jnp.inf


def linear(params: Any, statistics: Any, images: Any, key: Any) -> Any:
    del key
    return images.mean((1, 2)) @ params["kernel"] * params["scale"], statistics


def supervised(
    *,
    pixel: float = 1.0,
    scale: float = 1.0,
    frozen: float = 1.0,
    rate: float = 0.1,
    loss: Any = losses.cross_entropy,
) -> str | None:
    """Returns the faulty part of a teacher's first step."""
    tx = optax.with_extra_args_support(optax.sgd(rate))
    step = steps.make_supervised_step(
        linear,
        tx,
        lambda key, images: images * pixel,
        key=jax.random.key(0),
        loss=loss,
        mixing=Mixing(),
    )
    first = state.create({"params": {"kernel": jnp.full((3, 2), scale)}}, tx)
    batch = Batch(jnp.ones((4, 2, 2, 3)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool))
    _, metrics = jax.jit(step)(first, batch, {"scale": jnp.asarray(frozen)})
    return fault_name(metrics)


def distilled(*, logit: float = 1.0, weight: float = 0.5) -> str | None:
    """Returns the faulty part of a KD student's first step."""
    tx = optax.sgd(1.0)

    def apply(*arguments: Any) -> Any:
        logits, statistics = linear(*arguments)
        return Outputs(logits), statistics

    def loss(*arguments: Any, **settings: Any) -> Any:
        return student_losses.LOSSES["kd"](*arguments, hard_labels=True, **settings)

    step = steps.make_student_step(apply, tx, loss=loss, key=jax.random.key(0))
    params = {"kernel": jnp.ones((3, 2)), "scale": jnp.ones(())}
    images, labels = jnp.ones((4, 2, 2, 3)), jnp.zeros(4, jnp.int32)
    teacher = Outputs(jnp.full((4, 2), logit))
    settings = Hyperparameters(0.1, 1.0, weight, 0)
    _, metrics = jax.jit(step)(
        state.create({"params": params}, tx), images, labels, teacher, settings
    )
    return fault_name(metrics)


def fault_name(metrics: Any) -> str | None:
    fault = int(metrics["fault"])
    return finite.PARTS[fault - 1] if fault else None


def infinite(logits: Any, labels: Any) -> Any:
    return jnp.sum(logits) / jnp.sum(labels)  # Infinite, because all labels are 0.


def steep(logits: Any, labels: Any) -> Any:
    del labels
    return jnp.sum(
        jnp.sqrt(logits - jax.lax.stop_gradient(logits))
    )  # 0, with an infinite gradient.


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({}, None),
        ({"pixel": NAN}, "data"),
        ({"scale": NAN}, "parameters"),
        ({"frozen": INFINITY}, "parameters"),
        ({"loss": infinite}, "loss"),
        ({"loss": steep}, "gradient"),
        ({"rate": 3e38, "scale": 1e3, "loss": lambda x, y: 9.0 * jnp.sum(x)}, "update"),
        ({"pixel": NAN, "scale": NAN}, "data"),
    ],
)
def test_the_first_faulty_part_of_a_teachers_step_is_named(
    broken: dict[str, Any], expected: str | None
) -> None:
    assert supervised(**broken) == expected


@pytest.mark.parametrize(
    ("broken", "expected"),
    [({}, None), ({"logit": NAN}, "teacher"), ({"logit": NAN, "weight": 0.0}, None)],
)
def test_a_faulty_teacher_is_named_if_it_has_a_weight(
    broken: dict[str, Any], expected: str | None
) -> None:
    assert distilled(**broken) == expected


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-38, NAN, INFINITY, -INFINITY])
def test_a_tree_is_finite_if_and_only_if_numpy_agrees(value: float) -> None:
    filled = np.full((300, 300), value, np.float32)
    single = np.ones((300, 300), np.float32)
    single[7, 9] = value

    for array in (filled, single):
        actual = finite.is_finite({"a": jnp.asarray(array), "b": jnp.zeros(3, jnp.int32)})
        assert bool(actual) == np.isfinite(array).all()


def test_an_overflow_in_adams_moments_is_a_fault_of_the_update() -> None:
    # The squared gradient is infinite, so Adam's update is 0 and no parameter changes.
    tx = optax.with_extra_args_support(optax.adam(0.1))
    step = steps.make_supervised_step(
        linear,
        tx,
        lambda key, images: images * 1e30,
        key=jax.random.key(0),
        loss=losses.cross_entropy,
        mixing=Mixing(),
    )
    first = state.create({"params": {"kernel": jnp.zeros((3, 2))}}, tx)
    batch = Batch(jnp.ones((4, 2, 2, 3)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool))

    after, metrics = jax.jit(step)(first, batch, {"scale": jnp.ones(())})

    assert np.isfinite(metrics["loss"])
    assert np.isfinite(after.params["kernel"]).all()
    assert fault_name(metrics) == "update"
