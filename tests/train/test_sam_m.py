"""SAM's groups, accumulation and devices agree with a slow loop in float64."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import losses, models, optim, sam
from remem_jax.data.images.augment import Mixing
from remem_jax.models import vit
from remem_jax.records import Batch
from remem_jax.train import state, steps
from remem_jax.train.division import Division
from tests.oracles import sam_numpy
from tests.train import sam_devices_child as small

SIZE = small.EXAMPLES


@pytest.fixture
def params(rng: np.random.Generator) -> Any:
    return small.variables(rng)


@pytest.fixture
def batch(rng: np.random.Generator) -> Batch:
    return small.data(rng)


def take(params: Any, batch: Batch, division: Division, **options: Any) -> tuple[Any, Any]:
    """Takes one step; returns the parameters after it and its metrics."""
    step, tx = small.make_step(division, **options)
    first = state.create({"params": params}, tx)
    if division.mesh is not None:
        first, batch = small.placed(first, batch, division.mesh)
    after, metrics = step(first, batch, {})
    return jax.device_get(after.params), jax.device_get(metrics)


def assert_updated(after: Any, params: Any, reference: sam_numpy.Found) -> None:
    for name, gradient in reference.gradient.items():
        expected = params[name] - small.RATE * gradient
        np.testing.assert_allclose(after[name], expected, atol=2e-6)  # float32 rounding.


@pytest.mark.parametrize("group", [0, SIZE, 8, 2, 1])
def test_each_group_ascends_its_own_gradient(params: Any, batch: Batch, group: int) -> None:
    after, metrics = take(params, batch, Division(group))

    reference = small.oracle(params, batch, group=group)
    assert_updated(after, params, reference)
    np.testing.assert_allclose(metrics["loss"], reference.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["ascent_norm"], reference.ascent_norm, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["gradient_norm"], sam_numpy.norm(reference.gradient), rtol=1e-5
    )


def test_the_group_size_changes_the_gradient(params: Any, batch: Batch) -> None:
    one_group, two_groups = (small.oracle(params, batch, group=group) for group in (0, 8))

    assert np.abs(one_group.gradient["head"] - two_groups.gradient["head"]).max() > 1e-3


@pytest.mark.parametrize(("group", "accumulate"), [(0, 4), (8, 4), (8, 3), (2, 4)])
def test_accumulation_does_not_change_the_step(
    params: Any, batch: Batch, group: int, accumulate: int
) -> None:
    after, metrics = take(params, batch, Division(group, accumulate))

    reference = small.oracle(params, batch, group=group)
    assert_updated(after, params, reference)
    np.testing.assert_allclose(metrics["loss"], reference.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["ascent_norm"], reference.ascent_norm, rtol=1e-5)


@pytest.mark.parametrize("devices", [0, 2])
def test_a_gradient_without_sam_is_accumulated(params: Any, batch: Batch, devices: int) -> None:
    division = Division(accumulate=4, mesh=small.mesh(devices) if devices else None)

    after, metrics = take(params, batch, division, rho=0.0)

    targets = np.eye(small.CLASSES)[np.asarray(batch.label)]
    exact = {name: np.asarray(value, np.float64) for name, value in params.items()}
    loss, gradient = sam_numpy.gradient(exact, np.asarray(batch.image, np.float64), targets)
    assert_updated(after, params, sam_numpy.Found(loss, gradient, 0.0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert "ascent_norm" not in metrics


def test_the_mean_gradient_over_the_groups_is_clipped(params: Any, batch: Batch) -> None:
    tx = optim.sgd(
        lambda _: small.RATE, momentum=0.0, clip_norm=0.1, nesterov=False, weight_decay=0.0
    )
    step = steps.make_supervised_step(
        small.apply,
        tx,
        lambda key, images: images,
        key=jax.random.key(0),
        ascent=sam.sam(small.RHO),
        division=Division(4),
        loss=losses.cross_entropy,
        mixing=Mixing(),
    )

    after, _ = jax.jit(step)(state.create({"params": params}, tx), batch, {})

    reference = small.oracle(params, batch, group=4)
    factor = 0.1 / sam_numpy.norm(reference.gradient)
    clipped = {name: factor * value for name, value in reference.gradient.items()}
    assert factor < 1
    assert_updated(after.params, params, reference._replace(gradient=clipped))


@pytest.mark.parametrize(
    ("rho", "group", "passes"), [(0.0, 0, 1), (0.7, 0, 2), (0.7, 8, 2), (0.7, 1, 2)]
)
def test_a_step_of_sam_takes_two_passes_for_any_group_size(
    params: Any, batch: Batch, rho: float, group: int, passes: int
) -> None:
    sizes: list[int] = []

    def counting(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> Any:
        jax.debug.callback(lambda images: sizes.append(len(images)), images)
        return small.apply(params, statistics, images, key)

    take(params, batch, Division(group), rho=rho, apply=counting)
    jax.effects_barrier()

    assert sum(sizes) == passes * SIZE


@pytest.fixture(scope="module")
def on_devices() -> list[dict[str, Any]]:
    """The results of a process with eight devices."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.sam_devices_child"],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("devices", small.DEVICES)
@pytest.mark.parametrize("ascent", ["whole batch", "per device"])
def test_any_number_of_devices_takes_the_step_of_the_slow_loop(
    on_devices: list[dict[str, Any]], devices: int, ascent: str
) -> None:
    rng = np.random.default_rng(0)
    params, batch = small.variables(rng), small.data(rng)
    group = 0 if ascent == "whole batch" else SIZE // devices

    (actual,) = (r for r in on_devices if (r["devices"], r["group"]) == (devices, group))

    reference = small.oracle(params, batch, group=group)
    assert_updated(actual["kernels"], params, reference)
    np.testing.assert_allclose(actual["metrics"]["loss"], reference.loss, rtol=1e-5)
    np.testing.assert_allclose(actual["metrics"]["ascent_norm"], reference.ascent_norm, rtol=1e-5)


@pytest.mark.parametrize("devices", small.DEVICES[1:])
def test_devices_exchange_one_gradient_if_each_has_its_own_ascent(
    on_devices: list[dict[str, Any]], params: Any, devices: int
) -> None:
    one_ascent, per_device = (r["numbers"] for r in on_devices if r["devices"] == devices)

    gradient = sum(value.size for value in params.values())
    # The loss and whether the batch is finite are exchanged too.
    assert one_ascent == {"all-reduce": 2 * gradient + 2}
    assert per_device == {"all-reduce": gradient + 3}  # With the norm.


@pytest.mark.parametrize(("group", "gradients"), [(0, 2), (4, 1)])
def test_devices_exchange_gradients_once_for_all_microbatches(
    params: Any, batch: Batch, group: int, gradients: int
) -> None:
    mesh = small.mesh(2)
    step, tx = small.make_step(Division(group, 4, mesh))
    first, shares = small.placed(state.create({"params": params}, tx), batch, mesh)

    compiled = step.lower(first, shares, {}).compile()
    after, _ = compiled(first, shares, {})

    exchanged = small.collectives(compiled)
    assert set(exchanged["numbers"]) == {"all-reduce"}
    assert exchanged["in_loops"] == 0
    size = sum(value.size for value in params.values())
    assert 0 <= exchanged["numbers"]["all-reduce"] - gradients * size <= 3
    assert_updated(jax.device_get(after.params), params, small.oracle(params, batch, group=group))


def noisy(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
    """Applies the network to inputs that depend on the key; compiles faster than dropout."""
    scale = (jax.random.key_data(key)[-1] % 7).astype(jnp.float32)
    return small.apply(params, statistics, scale * images, key)


def test_dropout_of_a_group_is_the_same_on_any_number_of_devices(params: Any, batch: Batch) -> None:
    on_one, _ = take(params, batch, Division(4), apply=noisy)
    on_two, _ = take(params, batch, Division(4, mesh=small.mesh(2)), apply=noisy)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), on_one, on_two)
    without = params["head"] - small.RATE * small.oracle(params, batch, group=4).gradient["head"]
    assert np.abs(on_one["head"] - without).max() > 1e-2


def test_each_microbatch_has_one_dropout_key_for_both_passes(params: Any, batch: Batch) -> None:
    keys: list[tuple[int, ...]] = []

    def recording(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> Any:
        data = jax.random.key_data(key)
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), data)
        return small.apply(params, statistics, images, key)

    take(params, batch, Division(4, 8), apply=recording)
    jax.effects_barrier()

    assert len(set(keys)) == 8
    assert all(keys.count(key) == 2 for key in keys)


def test_images_are_mixed_across_the_whole_batch(params: Any, batch: Batch) -> None:
    at_once, metrics = take(params, batch, Division(), mixing=Mixing(mixup=8.0))
    accumulated, accumulated_metrics = take(
        params, batch, Division(accumulate=4), mixing=Mixing(mixup=8.0)
    )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), at_once, accumulated)
    assert metrics["loss"] == pytest.approx(accumulated_metrics["loss"], rel=1e-5)
    unmixed = small.oracle(params, batch, group=0).loss
    assert abs(metrics["loss"] - unmixed) > 1e-2


def test_memory_holds_the_activations_of_one_microbatch(params: Any) -> None:
    stored = jax.ShapeDtypeStruct((32, 64, 64, 3), jnp.float32)
    batch = Batch(stored, jax.ShapeDtypeStruct((32,), jnp.int32), None)  # pyright: ignore

    def temporary(accumulate: int) -> int:
        step, tx = small.make_step(Division(accumulate=accumulate))
        first = jax.eval_shape(lambda: state.create({"params": params}, tx))
        return step.lower(first, batch, {}).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 4


def test_a_vit_with_frozen_parameters_takes_the_step_of_a_slow_loop(
    rng: np.random.Generator,
) -> None:
    model = vit.make(variant=vit.Size(patch=4, features=8, depth=1, heads=2), classes=3, scan=True)
    apply = models.train_apply(model)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), models.shapes(model, 8)
    )
    trained = {"head": variables["head"], "embedding": variables["embedding"]}
    frozen = {name: tree for name, tree in variables.items() if name not in trained}
    images = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 8), jnp.int32)
    mesh = small.mesh(2)
    step, tx = small.make_step(Division(2, mesh=mesh), apply=apply)
    first, shares = small.placed(
        state.create({"params": trained}, tx), Batch(images, labels, labels > -1), mesh
    )

    after, metrics = step(first, shares, jax.device_put(frozen, first.step.sharding))

    @jax.jit
    def gradient(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = apply({**params, **frozen}, {}, images, jax.random.key(0))
            return losses.cross_entropy(logits, labels)

        return jax.grad(loss)(params)

    gradients, norms = [], []
    for group in np.split(np.arange(8), 4):
        examples = np.asarray(images)[group], np.asarray(labels)[group]
        ascent = jax.device_get(gradient(trained, *examples))
        norms.append(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(ascent))))
        scale = small.RHO / norms[-1]
        perturbed = jax.tree.map(lambda p, g, scale=scale: p + scale * g, trained, ascent)
        gradients.append(jax.device_get(gradient(perturbed, *examples)))
    expected = jax.tree.map(lambda p, *g: p - small.RATE * sum(g) / 4, trained, *gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(after.params),
        expected,
    )
    np.testing.assert_allclose(metrics["ascent_norm"], np.mean(norms), rtol=1e-5)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        (Division(5), "16 examples does not divide into groups of 5"),
        (Division(32), "16 examples does not divide into groups of 32"),
        (Division(accumulate=3), "16 examples does not divide into 3 microbatches"),
        (Division(8, 6), "16 examples does not divide into 6 microbatches, of 2 groups"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(
    params: Any, batch: Batch, division: Division, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        take(params, batch, division)


def test_a_device_holds_whole_groups() -> None:
    division = Division(4, mesh=small.mesh(2))
    with pytest.raises(ValueError, match="3 groups of 4 examples do not divide among 2 devices"):
        division.counts(12)


@pytest.mark.parametrize(
    ("division", "examples", "counts"),
    [
        (Division(), 16, (1, 1)),
        (Division(accumulate=4), 16, (1, 4)),
        (Division(4, 1), 16, (4, 1)),
        (Division(4, 2), 16, (4, 1)),  # A group is smaller than a microbatch.
        (Division(4, 8), 16, (4, 2)),
    ],
)
def test_a_group_is_a_microbatch_or_is_divided_into_several(
    division: Division, examples: int, counts: tuple[int, int]
) -> None:
    assert division.counts(examples) == counts


def test_sam_in_the_optimiser_chain_is_refused(params: Any, batch: Batch) -> None:
    tx = optax.chain(sam.sam(0.1), optax.sgd(small.RATE))
    step = steps.make_supervised_step(
        small.apply,
        tx,
        lambda key, images: images,
        key=jax.random.key(0),
        loss=losses.cross_entropy,
        mixing=Mixing(),
    )

    with pytest.raises(ValueError, match="make_supervised_step takes it as `ascent`"):
        step(state.create({"params": params}, tx), batch, {})


def test_a_model_with_batch_statistics_cannot_use_microbatches(params: Any, batch: Batch) -> None:
    step, tx = small.make_step(Division(accumulate=2))
    first = state.create({"params": params, "batch_stats": {"mean": jnp.zeros(3)}}, tx)

    with pytest.raises(ValueError, match=r"\(batch_stats\) need the whole batch.* 2 microbatches"):
        step(first, batch, {})
