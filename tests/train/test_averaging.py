"""The moving average of the weights is timm's, whatever step it follows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import losses, sam
from remem_jax.data.images import augment
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Batch
from remem_jax.train import averaging, state, steps
from remem_jax.train.division import Division
from tests.oracles import peers

STEPS = 5


def _trajectory() -> list[dict[str, Any]]:
    """Returns variables of a network with BatchNorm before the first step, and after each."""
    rng = np.random.default_rng(0)

    def values() -> dict[str, Any]:
        vectors = [rng.normal(size=3).astype(np.float32) for _ in range(4)]
        return {
            "params": {"bn": {"scale": vectors[0], "bias": vectors[1]}},
            "batch_stats": {"bn": {"mean": vectors[2], "var": vectors[3] ** 2}},
        }

    return [values() for _ in range(STEPS + 1)]


def _timms(decay: float, *, warmup: bool) -> Any:
    """Returns the average of timm, a BatchNorm, of these variables."""
    torch, timm = peers.torch(), peers.timm()
    module = torch.nn.BatchNorm1d(3)

    def assign(variables: dict[str, Any], step: int) -> None:
        params, statistics = variables["params"]["bn"], variables["batch_stats"]["bn"]
        names = {"weight": params["scale"], "bias": params["bias"]}
        names |= {"running_mean": statistics["mean"], "running_var": statistics["var"]}
        arrays = {name: torch.tensor(array) for name, array in names.items()}
        module.load_state_dict(arrays | {"num_batches_tracked": torch.tensor(step)})

    first, *rest = _trajectory()
    assign(first, 0)
    ema = timm.utils.ModelEmaV3(module, decay=decay, use_warmup=warmup)
    for step, variables in enumerate(rest, 1):
        assign(variables, step)
        ema.update(module, step=step)
    return ema.module


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.4, 0.9])
def test_parameters_and_statistics_are_averaged_as_by_timm(decay: float, warmup: bool) -> None:
    trajectory: Any = jax.tree.map(jnp.asarray, _trajectory())

    def step(current: state.State) -> tuple[state.State, dict[str, float]]:
        done = int(current.step) + 1
        variables = trajectory[done]
        statistics = {"batch_stats": variables["batch_stats"], "steps": jnp.asarray(done)}
        params = variables["params"]
        return current._replace(step=current.step + 1, params=params, statistics=statistics), {}

    averaged = averaging.averaged(step, decay=decay, warmup=warmup)
    first = {**trajectory[0], "steps": jnp.asarray(0)}
    current: Any = averaging.begin(state.create(first, optax.sgd(1.0)), decay=decay)
    for _ in range(STEPS):
        current, _ = averaged(current)

    expected = _timms(decay, warmup=warmup)
    average = current.variables
    for name, value in {
        "weight": average["params"]["bn"]["scale"],
        "bias": average["params"]["bn"]["bias"],
        "running_mean": average["batch_stats"]["bn"]["mean"],
        "running_var": average["batch_stats"]["bn"]["var"],
        "num_batches_tracked": average["steps"],
    }.items():
        reference = getattr(expected, name).detach().numpy()
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6)


def test_without_a_decay_state_and_step_are_unchanged() -> None:
    first = state.create({"params": {"kernel": jnp.ones(3)}}, optax.sgd(1.0))

    def step(current: state.State) -> Any:
        return current, {}

    assert averaging.begin(first, decay=0.0) is first
    assert averaging.averaged(step, decay=0.0, warmup=False) is step


def test_a_projection_is_not_averaged() -> None:
    variables = {"params": {"kernel": jnp.ones(3), "projection": {"kernel": jnp.ones(3)}}}

    first: Any = averaging.begin(state.create(variables, optax.sgd(1.0)), decay=0.9)

    assert set(first.average["params"]) == {"kernel"}
    assert set(first.params) == {"kernel", "projection"}


@pytest.mark.parametrize("division", [Division(), Division(group=2), Division(accumulate=3)])
def test_the_average_of_a_teachers_step_is_that_of_its_parameters(
    rng: np.random.Generator, division: Division
) -> None:
    batch = Batch(
        jnp.asarray(rng.integers(0, 256, (6, 4, 4, 3)), jnp.uint8),
        jnp.asarray(rng.integers(0, 3, 6), jnp.int32),
        jnp.ones(6, bool),
    )
    tx = optax.sgd(0.1)
    params = {"kernel": jnp.asarray(rng.normal(size=(48, 3)), jnp.float32)}
    make = functools.partial(
        steps.make_supervised_step,
        lambda params, statistics, images, key: (
            images.reshape(images.shape[0], -1) @ params["kernel"],
            statistics,
        ),
        tx,
        augment.make_train_transform(size=4, crop_area=(1.0, 1.0), flip=False),
        key=jax.random.key(0),
        loss=losses.cross_entropy,
        mixing=Mixing(),
        ascent=sam.sam(0.1),
        division=division,
    )
    step = jax.jit(averaging.averaged(make(), decay=0.5, warmup=False))
    current: Any = averaging.begin(state.create({"params": params}, tx), decay=0.5)

    kernels, metrics = [], {}
    for _ in range(3):
        current, metrics = step(current, batch, {})
        kernels.append(np.asarray(current.params["kernel"], np.float64))

    expected = 0.5 * kernels[2] + 0.25 * kernels[1] + 0.25 * kernels[0]
    np.testing.assert_allclose(current.variables["params"]["kernel"], expected, atol=1e-6)
    assert not np.allclose(kernels[2], expected, atol=1e-4)
    assert metrics["fault"] == 0
