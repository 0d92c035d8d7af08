"""Optimisers and schedules, against closed forms. The SGD of teachers is tested in test_sam.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import optim


@pytest.mark.usefixtures("mixed_dtypes")
def test_weight_decay_of_adamw_spares_all_but_kernels() -> None:
    params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "cls": jnp.ones(2)}
    tx = optim.adamw(lambda _: 0.1, weight_decay=0.5, clip_norm=1.0)
    zero = jax.tree.map(jnp.zeros_like, params)

    updates: Any
    updates, _ = tx.update(zero, tx.init(params), params)

    np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["Dense_0"]["bias"], 0.0)
    np.testing.assert_array_equal(updates["cls"], 0.0)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 0.25), (10, 0.5), (20, 0.25), (30, 0.0)])
@pytest.mark.usefixtures("mixed_dtypes")
def test_the_schedule_rises_linearly_and_falls_as_a_cosine(step: int, rate: float) -> None:
    schedule = optim.warmup_cosine(peak=0.5, steps=30, warmup_steps=10)
    assert schedule(step) == pytest.approx(rate, abs=1e-6)
