"""SAM's groups, accumulation and devices, against a slow loop in float64."""

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
    """Parameters after one step, and its metrics."""
    step, tx = small.make_step(division, **options)
    first = state.create({"params": params}, tx)
    if division.mesh is not None:
        first, batch = small.placed(first, batch, division.mesh)
    after, metrics = step(first, batch, {})
    return jax.device_get(after.params), jax.device_get(metrics)


def assert_descended(after: Any, params: Any, found: sam_numpy.Found) -> None:
    for name, gradient in found.gradient.items():
        expected = params[name] - small.RATE * gradient
        np.testing.assert_allclose(after[name], expected, atol=2e-6)  # float32.


@pytest.mark.parametrize("group", [0, SIZE, 8, 2, 1])
def test_each_group_climbs_its_own_gradient(params: Any, batch: Batch, group: int) -> None:
    after, metrics = take(params, batch, Division(group))

    found = small.oracle(params, batch, group=group)
    assert_descended(after, params, found)
    np.testing.assert_allclose(metrics["loss"], found.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["ascent_norm"], found.ascent_norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], sam_numpy.norm(found.gradient), rtol=1e-5)


def test_groups_matter(params: Any, batch: Batch) -> None:
    whole, halves = (small.oracle(params, batch, group=group) for group in (0, 8))

    assert np.abs(whole.gradient["head"] - halves.gradient["head"]).max() > 1e-3


@pytest.mark.parametrize(("group", "accumulate"), [(0, 4), (8, 4), (8, 3), (2, 4)])
def test_accumulation_changes_nothing(
    params: Any, batch: Batch, group: int, accumulate: int
) -> None:
    after, metrics = take(params, batch, Division(group, accumulate))

    found = small.oracle(params, batch, group=group)
    assert_descended(after, params, found)
    np.testing.assert_allclose(metrics["loss"], found.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["ascent_norm"], found.ascent_norm, rtol=1e-5)


@pytest.mark.parametrize("devices", [0, 2])
def test_a_plain_gradient_is_accumulated(params: Any, batch: Batch, devices: int) -> None:
    division = Division(accumulate=4, mesh=small.mesh(devices) if devices else None)

    after, metrics = take(params, batch, division, rho=0.0)

    targets = np.eye(small.CLASSES)[np.asarray(batch.label)]
    exact = {name: np.asarray(value, np.float64) for name, value in params.items()}
    loss, gradient = sam_numpy.gradient(exact, np.asarray(batch.image, np.float64), targets)
    assert_descended(after, params, sam_numpy.Found(loss, gradient, 0.0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert "ascent_norm" not in metrics


def test_the_mean_over_the_groups_is_clipped(params: Any, batch: Batch) -> None:
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
        mixup=0.0,
    )

    after, _ = jax.jit(step)(state.create({"params": params}, tx), batch, {})

    found = small.oracle(params, batch, group=4)
    factor = 0.1 / sam_numpy.norm(found.gradient)
    clipped = {name: factor * value for name, value in found.gradient.items()}
    assert factor < 1
    assert_descended(after.params, params, found._replace(gradient=clipped))


@pytest.mark.parametrize(
    ("rho", "group", "passes"), [(0.0, 0, 1), (0.7, 0, 2), (0.7, 8, 2), (0.7, 1, 2)]
)
def test_a_step_is_two_passes_for_every_group(
    params: Any, batch: Batch, rho: float, group: int, passes: int
) -> None:
    seen: list[int] = []

    def counting(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> Any:
        jax.debug.callback(lambda images: seen.append(len(images)), images)
        return small.apply(params, statistics, images, key)

    take(params, batch, Division(group), rho=rho, apply=counting)
    jax.effects_barrier()

    assert sum(seen) == passes * SIZE


@pytest.fixture(scope="module")
def on_devices() -> list[dict[str, Any]]:
    """What a process with eight devices found."""
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
@pytest.mark.parametrize("ascent", ["of the batch", "of each device"])
def test_any_number_of_devices_takes_the_step_of_the_loop(
    on_devices: list[dict[str, Any]], devices: int, ascent: str
) -> None:
    rng = np.random.default_rng(0)
    params, batch = small.variables(rng), small.data(rng)
    group = 0 if ascent == "of the batch" else SIZE // devices

    (seen,) = (r for r in on_devices if (r["devices"], r["group"]) == (devices, group))

    found = small.oracle(params, batch, group=group)
    assert_descended(seen["kernels"], params, found)
    np.testing.assert_allclose(seen["metrics"]["loss"], found.loss, rtol=1e-5)
    np.testing.assert_allclose(seen["metrics"]["ascent_norm"], found.ascent_norm, rtol=1e-5)


@pytest.mark.parametrize("devices", small.DEVICES[1:])
def test_one_gradient_passes_between_devices_where_each_climbs_its_own(
    on_devices: list[dict[str, Any]], params: Any, devices: int
) -> None:
    whole, own = (r["numbers"] for r in on_devices if r["devices"] == devices)

    gradient = sum(value.size for value in params.values())
    # And the loss, and whether the batch is finite.
    assert whole == {"all-reduce": 2 * gradient + 2}
    assert own == {"all-reduce": gradient + 3}  # And the norm.


@pytest.mark.parametrize(("group", "gradients"), [(0, 2), (4, 1)])
def test_gradients_pass_between_devices_once_for_all_parts(
    params: Any, batch: Batch, group: int, gradients: int
) -> None:
    mesh = small.mesh(2)
    step, tx = small.make_step(Division(group, 4, mesh))
    first, shares = small.placed(state.create({"params": params}, tx), batch, mesh)

    compiled = step.lower(first, shares, {}).compile()
    after, _ = compiled(first, shares, {})

    found = small.collectives(compiled)
    assert set(found["numbers"]) == {"all-reduce"}
    assert found["in_loops"] == 0
    size = sum(value.size for value in params.values())
    assert 0 <= found["numbers"]["all-reduce"] - gradients * size <= 3
    assert_descended(jax.device_get(after.params), params, small.oracle(params, batch, group=group))


def noisy(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
    """The network, with inputs that depend on the key as dropout does, and compile faster."""
    scale = (jax.random.key_data(key)[-1] % 7).astype(jnp.float32)
    return small.apply(params, statistics, scale * images, key)


def test_groups_drop_the_same_units_on_any_number_of_devices(params: Any, batch: Batch) -> None:
    one, _ = take(params, batch, Division(4), apply=noisy)
    two, _ = take(params, batch, Division(4, mesh=small.mesh(2)), apply=noisy)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)
    without = params["head"] - small.RATE * small.oracle(params, batch, group=4).gradient["head"]
    assert np.abs(one["head"] - without).max() > 1e-2


def test_parts_drop_units_of_their_own_and_the_same_in_both_passes(
    params: Any, batch: Batch
) -> None:
    seen: list[tuple[int, ...]] = []

    def telling(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> Any:
        data = jax.random.key_data(key)
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), data)
        return small.apply(params, statistics, images, key)

    take(params, batch, Division(4, 8), apply=telling)
    jax.effects_barrier()

    assert len(set(seen)) == 8
    assert all(seen.count(key) == 2 for key in seen)


def test_images_are_mixed_across_the_whole_batch(params: Any, batch: Batch) -> None:
    whole, of_whole = take(params, batch, Division(), mixup=8.0)
    parts, of_parts = take(params, batch, Division(accumulate=4), mixup=8.0)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole, parts)
    assert of_whole["loss"] == pytest.approx(of_parts["loss"], rel=1e-5)
    unmixed = small.oracle(params, batch, group=0).loss
    assert abs(of_whole["loss"] - unmixed) > 1e-2


def test_memory_holds_the_activations_of_one_part(params: Any) -> None:
    stored = jax.ShapeDtypeStruct((32, 64, 64, 3), jnp.float32)
    batch = Batch(stored, jax.ShapeDtypeStruct((32,), jnp.int32), None)  # pyright: ignore

    def temporary(accumulate: int) -> int:
        step, tx = small.make_step(Division(accumulate=accumulate))
        first = jax.eval_shape(lambda: state.create({"params": params}, tx))
        return step.lower(first, batch, {}).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 4


def test_a_vit_with_frozen_parameters_takes_the_step_of_the_loop(rng: np.random.Generator) -> None:
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

    found, norms = [], []
    for group in np.split(np.arange(8), 4):
        of_group = np.asarray(images)[group], np.asarray(labels)[group]
        climbed = jax.device_get(gradient(trained, *of_group))
        norms.append(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(climbed))))
        scale = small.RHO / norms[-1]
        worst = jax.tree.map(lambda p, g, scale=scale: p + scale * g, trained, climbed)
        found.append(jax.device_get(gradient(worst, *of_group)))
    expected = jax.tree.map(lambda p, *g: p - small.RATE * sum(g) / 4, trained, *found)
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
        (Division(4, 2), 16, (4, 1)),  # A group is smaller than a part.
        (Division(4, 8), 16, (4, 2)),
    ],
)
def test_groups_are_parts_or_divide_into_parts(
    division: Division, examples: int, counts: tuple[int, int]
) -> None:
    assert division.counts(examples) == counts


def test_sam_in_the_chain_of_the_optimiser_is_refused(params: Any, batch: Batch) -> None:
    tx = optax.chain(sam.sam(0.1), optax.sgd(small.RATE))
    step = steps.make_supervised_step(
        small.apply,
        tx,
        lambda key, images: images,
        key=jax.random.key(0),
        loss=losses.cross_entropy,
        mixup=0.0,
    )

    with pytest.raises(ValueError, match="make_supervised_step takes it as `ascent`"):
        step(state.create({"params": params}, tx), batch, {})


def test_batch_statistics_are_not_divided(params: Any, batch: Batch) -> None:
    step, tx = small.make_step(Division(accumulate=2))
    first = state.create({"params": params, "batch_stats": {"mean": jnp.zeros(3)}}, tx)

    with pytest.raises(ValueError, match=r"\(batch_stats\) need the whole batch.* 2 microbatches"):
        step(first, batch, {})
