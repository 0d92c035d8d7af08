"""Optimisers and schedules, against torch and closed forms. SGD with SAM is in test_sam.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import remem
from remem_jax import optim
from remem_jax.records import Params
from remem_jax.workflow import optimiser
from remem_jax.workflow.remem import student_steps
from tests.oracles import peers

STEPS = 4
ADAMW = {"betas": (0.8, 0.95), "epsilon": 1e-3, "weight_decay": 0.3, "clip_norm": None}


@pytest.mark.usefixtures("mixed_dtypes")
def test_weight_decay_of_adamw_spares_all_but_kernels() -> None:
    params = {
        "Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))},
        "cls": jnp.ones((1, 1, 2)),
        "bn": {"scale": jnp.ones(2)},
    }
    tx = optim.adamw(lambda _: 0.1, **{**ADAMW, "weight_decay": 0.5, "clip_norm": 1.0})
    zero = jax.tree.map(jnp.zeros_like, params)

    updates: Any
    updates, _ = tx.update(zero, tx.init(params), params)

    np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.05, rtol=1e-6)
    for leaf in (updates["Dense_0"]["bias"], updates["cls"], updates["bn"]["scale"]):
        np.testing.assert_array_equal(leaf, 0.0)


def _start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("kernel", (3, 2)), ("bias", (2,)))
    }


def _gradients() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {name: rng.normal(size=x.shape).astype(np.float32) for name, x in _start().items()}
        for _ in range(STEPS)
    ]


def _ours(tx: optax.GradientTransformation, rate: float = 1.0) -> dict[str, np.ndarray]:
    """Takes steps whose updates are multiplied by a rate, as `steps.make_student_step` does."""
    params: Any = jax.tree.map(jnp.asarray, _start())
    state = tx.init(params)
    for gradient in _gradients():
        updates, state = tx.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda x: rate * x, updates))
    return jax.device_get(params)


def _torchs(
    make: Any, groups: dict[str, dict[str, Any]], schedule: Any, *, clip_norm: float = 0.0
) -> dict[str, np.ndarray]:
    """Takes the same steps with an optimiser of torch, whose groups have one parameter each."""
    torch = peers.torch()
    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in _start().items()}
    optimizer = make([{"params": [params[name]], **group} for name, group in groups.items()])
    rates = [group["lr"] for group in optimizer.param_groups]
    for step, gradient in enumerate(_gradients()):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step)
        for name, param in params.items():
            param.grad = torch.tensor(gradient[name])
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def _halved(step: Any) -> Any:
    return 0.5**step


@pytest.mark.usefixtures("mixed_dtypes")
def test_adamw_is_torchs_at_any_peak_of_its_schedule() -> None:
    torch = peers.torch()

    ours = _ours(optim.adamw(_halved, **ADAMW), rate=0.02)

    groups = {"kernel": {"weight_decay": 0.3}, "bias": {"weight_decay": 0.0}}
    expected = _torchs(
        lambda params: torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.95), eps=1e-3),
        groups,
        _halved,
    )
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(("clip_norm", "nesterov"), [(0.0, True), (0.5, True), (0.5, False)])
def test_the_optimiser_of_students_is_torchs(clip_norm: float, nesterov: bool) -> None:
    torch, settings = peers.torch(), remem.get_config().student
    settings.clip_norm, settings.warmup_steps, settings.steps = clip_norm, 0, 8
    settings.nesterov = nesterov
    schedule = optim.warmup_cosine(peak=1.0, steps=8, warmup_steps=0)

    ours = _ours(
        student_steps.make_optimiser(settings, _start(), pretrained=False, paced=False), rate=0.1
    )

    options = {"momentum": settings.momentum, "nesterov": nesterov}
    expected = _torchs(
        lambda params: torch.optim.SGD(params, lr=0.1, weight_decay=1e-4, **options),
        {"kernel": {}, "bias": {}},
        lambda step: float(schedule(step)),
        clip_norm=clip_norm,
    )
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_optimiser_of_teachers_is_torchs(nesterov: bool) -> None:
    torch, settings = peers.torch(), remem.get_config().teacher
    settings.nesterov, settings.weight_decay = nesterov, 0.01

    tx = optimiser.make(settings, _halved, _start(), clip_norm=0.5, is_head=None)

    options = {"momentum": settings.momentum, "nesterov": nesterov, "weight_decay": 0.01}
    expected = _torchs(
        lambda params: torch.optim.SGD(params, lr=0.1, **options),
        {"kernel": {}, "bias": {}},
        _halved,
        clip_norm=0.5,
    )
    ours = _ours(tx, rate=0.1)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_head_is_trained_first_as_with_two_optimisers_of_torch(name: str) -> None:
    torch, head_alone = peers.torch(), 2
    if name == "sgd":
        common = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
        probe, tx = (optim.sgd(rate, **common, clip_norm=0.5) for rate in (lambda _: 0.4, _halved))
        make = torch.optim.SGD
        options = common
    else:
        common = {**ADAMW, "weight_decay": 0.0, "clip_norm": 0.5}
        probe, tx = (optim.adamw(rate, **common) for rate in (lambda _: 0.4, _halved))
        make = torch.optim.AdamW
        options = {"betas": ADAMW["betas"], "eps": ADAMW["epsilon"], "weight_decay": 0.0}
    params = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in _start().items()}
    bias_alone = make([params["bias"]], lr=0.04, **options)
    both = make(list(params.values()), lr=0.1, **options)
    for step, gradient in enumerate(_gradients()):
        probing = step < head_alone
        for key, param in params.items():
            param.grad = None if probing and key == "kernel" else torch.tensor(gradient[key])
        torch.nn.utils.clip_grad_norm_([p for p in params.values() if p.grad is not None], 0.5)
        for group in both.param_groups:
            group["lr"] = 0.1 * _halved(step - head_alone)
        (bias_alone if probing else both).step()

    ours = _ours(
        optim.head_first(probe, tx, steps=head_alone, is_head=lambda key: key == "bias"), rate=0.1
    )

    for key, param in params.items():
        np.testing.assert_allclose(ours[key], param.detach().numpy(), rtol=1e-5, atol=1e-6)


def _factors(params: Params) -> Params:
    return {"kernel": 0.25, "bias": jnp.asarray([1.0, 2.0])}


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_scaled_rates_are_those_of_torchs_groups(name: str) -> None:
    torch = peers.torch()
    if name == "sgd":
        tx = optim.sgd(_halved, momentum=0.9, nesterov=True, weight_decay=0.3, clip_norm=None)
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
        make = torch.optim.SGD
    else:
        tx = optim.adamw(_halved, **{**ADAMW, "weight_decay": 0.0})
        options = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.0}
        make = torch.optim.AdamW

    ours = _ours(optim.scaled(tx, _factors), rate=0.1)

    for column, rate in enumerate((1.0, 2.0)):
        groups = {"kernel": {"lr": 0.025}, "bias": {"lr": 0.1 * rate}}
        expected = _torchs(lambda params: make(params, **options), groups, _halved)
        np.testing.assert_allclose(ours["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            ours["bias"][column], expected["bias"][column], rtol=1e-5, atol=1e-6
        )


def test_scaled_rates_leave_the_state_of_the_optimiser_as_it_is() -> None:
    tx = optim.sgd(_halved, momentum=0.9, nesterov=True, weight_decay=0.3, clip_norm=None)

    scaled = optim.scaled(tx, _factors).init(_start())

    assert jax.tree.structure(scaled) == jax.tree.structure(tx.init(_start()))


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 0.25), (10, 0.5), (20, 0.25), (30, 0.0)])
@pytest.mark.usefixtures("mixed_dtypes")
def test_the_schedule_rises_linearly_and_falls_as_a_cosine(step: int, rate: float) -> None:
    schedule = optim.warmup_cosine(peak=0.5, steps=30, warmup_steps=10)
    assert schedule(step) == pytest.approx(rate, abs=1e-6)
