"""Fine-tuning methods: the parameters that each adds, trains and exports."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models, sam
from remem_jax.models import tuning, vit

SIZE = vit.Size(patch=4, features=12, depth=3, heads=2)
SMALL: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"rank": 4, "scale": 8},
    "adapter_houlsby": {"reduction": 4},
    "adapter_pfeiffer": {"reduction": 4},
    "linear_probe": {},
}


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5, **options)


def random_like(shapes: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), shapes)


def flatten(params: Any) -> Any:
    return traverse_util.flatten_dict(params, sep="/")


def adds(name: str) -> bool:
    """Returns whether LoRA or an adapter added a parameter."""
    return "lora_" in name or "Adapter_0" in name


def is_norm(name: str) -> bool:
    return any(norm in name for norm in ("LayerNorm_0", "LayerNorm_2", "encoder_norm"))


def loss_of(tuned: tuning.Tuning, frozen: Any, images: jax.Array) -> Any:
    """Returns a loss in training mode as a function of the trainable parameters."""
    apply = tuned.wrap(models.train_apply(tiny()))

    def loss(trainable: Any) -> jax.Array:
        params = tuning.join(trainable, frozen)
        return jnp.sum(apply(params, {}, images, jax.random.key(0))[0] ** 2)

    return loss


@pytest.fixture(scope="module")
def params() -> Any:
    return random_like(models.shapes(tiny(), 8))


@pytest.fixture(scope="module")
def plain() -> Any:
    """The pretrained network."""
    return jax.jit(models.evaluation_apply(tiny()))


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("method", tuning.METHODS)
def test_fine_tuning_starts_from_exactly_the_pretrained_network(
    params: Any, images: jax.Array, key: jax.Array, plain: Any, method: str
) -> None:
    tuned = tuning.make(method, **SMALL[method])
    apply = jax.jit(tuned.wrap(models.evaluation_apply(tiny())))

    first = apply({"params": tuned.add(params, key)}, images)

    np.testing.assert_array_equal(first, plain({"params": params}, images))


@pytest.mark.parametrize("method", ["lora", "adapter_houlsby"])
def test_training_evaluation_and_export_use_the_same_network(
    params: Any, images: jax.Array, key: jax.Array, plain: Any, method: str
) -> None:
    tuned = tuning.make(method, **SMALL[method])
    added = random_like(jax.eval_shape(tuned.add, params, key))
    evaluate = jax.jit(tuned.wrap(models.evaluation_apply(tiny())))
    train = jax.jit(tuned.wrap(models.train_apply(tiny())))

    evaluated = evaluate({"params": added}, images)

    exported = tuned.merge(added)
    from_export = (plain if tuned.mergeable else evaluate)({"params": exported}, images)
    for actual in (train(added, {}, images, key)[0], from_export):
        np.testing.assert_allclose(
            actual, evaluated, rtol=1e-5, atol=1e-5
        )  # XLA fuses the operations differently.
    assert not np.allclose(evaluated, plain({"params": params}, images), atol=0.1)


@pytest.mark.parametrize("method", tuning.METHODS)
def test_mergeable_parameters_are_exported_under_the_models_names_only(
    params: Any, key: jax.Array, method: str
) -> None:
    tuned = tuning.make(method, **SMALL[method])

    exported = flatten(jax.eval_shape(lambda p: tuned.merge(tuned.add(p, key)), params))

    assert (set(exported) == set(flatten(params))) == tuned.mergeable


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", lambda name: True),
        ("lora", lambda name: "lora_" in name or "head" in name),
        ("adapter_houlsby", lambda name: "Adapter_0" in name or "head" in name or is_norm(name)),
        ("adapter_pfeiffer", lambda name: "Adapter_0" in name or "head" in name),
        ("linear_probe", lambda name: "head" in name),
    ],
)
def test_each_method_trains_its_own_parameters_and_the_head(
    params: Any, key: jax.Array, method: str, expected: Any
) -> None:
    tuned = tuning.make(method, **SMALL[method])
    added = jax.eval_shape(tuned.add, params, key)

    trainable, frozen = tuning.split(added, tuned.trains)

    names = set(flatten(added))
    assert set(flatten(trainable)) == {name for name in names if expected(name)}
    assert set(flatten(frozen)) == {name for name in names if not expected(name)}


@pytest.mark.parametrize("method", ["adapter_houlsby", "adapter_pfeiffer"])
@pytest.mark.parametrize("norms", [True, False])
def test_norms_train_on_request(method: str, norms: bool) -> None:
    tuned = tuning.make(method, norms=norms)
    assert tuned.trains("Transformer/encoderblock_0/LayerNorm_2/scale") == norms
    assert tuned.trains("Transformer/encoder_norm/bias") == norms


def test_attention_pooling_trains_only_in_full_fine_tuning(key: jax.Array) -> None:
    shapes = models.shapes(tiny(pool="map"), 8)
    for method, options in SMALL.items():
        tuned = tuning.make(method, **options)
        added = jax.eval_shape(tuned.add, shapes, key)

        trainable, _ = tuning.split(added, tuned.trains)

        kernels = [n for n in flatten(trainable) if n.startswith("MAPHead_0") and not is_norm(n)]
        assert bool(kernels) == (method == "full")


@pytest.mark.parametrize("method", ["lora", "adapter_houlsby", "linear_probe"])
def test_the_first_gradient_reaches_only_trainable_parameters(
    params: Any, images: jax.Array, key: jax.Array, method: str
) -> None:
    tuned = tuning.make(method, **SMALL[method])
    trainable, frozen = tuning.split(tuned.add(params, key), tuned.trains)

    gradient = flatten(jax.jit(jax.grad(loss_of(tuned, frozen, images)))(trainable))

    assert set(gradient) == set(flatten(trainable))
    for name, leaf in gradient.items():
        # B and the up-projections start at zero, so their factors have no gradient at first.
        starts_still = "lora_a" in name or "/down/" in name
        assert bool(jnp.any(leaf != 0)) != starts_still, name


@pytest.mark.parametrize("method", ["lora", "adapter_pfeiffer"])
def test_sam_ascends_by_rho_in_the_trainable_parameters(
    params: Any, key: jax.Array, method: str
) -> None:
    tuned = tuning.make(method, **SMALL[method])
    shapes, _ = tuning.split(jax.eval_shape(tuned.add, params, key), tuned.trains)
    trainable, gradient = random_like({"now": shapes, "gradient": shapes}).values()
    tx = sam.sam(0.05)

    # A grad_fn that returns its argument reveals the perturbed parameters.
    update = jax.jit(lambda g, p: tx.update(g, tx.init(p), p, grad_fn=lambda worst: worst))
    worst, state = update(gradient, trainable)

    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
    norm = np.linalg.norm(np.concatenate(leaves))
    np.testing.assert_allclose(state.ascent_norm, norm, rtol=1e-5)  # The float32 error.
    ascents = jax.tree.map(lambda w, p: np.asarray(w, np.float64) - p, worst, trainable)
    ascent = np.linalg.norm(np.concatenate([a.ravel() for a in jax.tree.leaves(ascents)]))
    np.testing.assert_allclose(
        ascent, 0.05, rtol=1e-3
    )  # Differences of float32 numbers of about 0.5.
    assert set(flatten(worst)) == {n for n in flatten(trainable) if adds(n) or "head" in n}


# Per block, LoRA has A and B for q and v; an adapter has two kernels and two biases. Each of the
# 25 LayerNorms has 2 x 768 parameters; the head for 10 classes has 7,690.
HEAD = 768 * 10 + 10
ADAPTER = 768 * 48 + 48 + 48 * 768 + 768
NORMS = 25 * 2 * 768


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", 85_798_656 + HEAD),
        ("lora", 12 * 2 * (768 * 32 + 32 * 768) + HEAD),
        ("adapter_houlsby", 12 * 2 * ADAPTER + NORMS + HEAD),
        ("adapter_pfeiffer", 12 * ADAPTER + HEAD),
        ("linear_probe", HEAD),
    ],
)
def test_the_trainable_parameters_of_b16_match_the_papers(
    key: jax.Array, method: str, expected: int
) -> None:
    shapes = models.shapes(models.make("vit", variant="B/16", classes=10), 224)
    tuned = tuning.make(method)

    trainable, frozen = tuning.split(jax.eval_shape(tuned.add, shapes, key), tuned.trains)

    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == expected
    before, after = (
        {name: leaf.shape for name, leaf in flatten(tree).items()}
        for tree in (shapes, tuning.join(trainable, frozen))
    )
    assert {name: shape for name, shape in after.items() if not adds(name)} == before


@pytest.mark.parametrize("method", tuning.METHODS)
def test_split_and_join_are_inverse(params: Any, key: jax.Array, method: str) -> None:
    tuned = tuning.make(method, **SMALL[method])
    added = random_like(jax.eval_shape(tuned.add, params, key))

    joined = tuning.join(*tuning.split(added, tuned.trains))

    assert jax.tree.structure(joined) == jax.tree.structure(added)
    for actual, expected in zip(jax.tree.leaves(joined), jax.tree.leaves(added), strict=True):
        assert actual is expected


def test_a_parameter_in_both_trees_is_an_error() -> None:
    tree = {"head": {"bias": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"Both trainable and frozen: \['head/bias'\]"):
        tuning.join(tree, tree)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("prefix", {}, "method must be one of full, lora, .*linear_probe; got 'prefix'"),
        ("full", {"rank": 4}, "'full' has no option 'rank'; known: none"),
        ("lora", {"reduction": 4}, "no option 'reduction'; known: targets, rank, scale"),
        ("adapter_houlsby", {"rank": 4}, "no option 'rank'; known: reduction, norms"),
        ("lora", {"targets": ("q",)}, "targets must be one of query.*; got 'q'"),
        ("lora", {"rank": -1}, "rank must be at least 1, got -1"),
        ("lora", {"scale": 0.0}, "scale must be above 0, got 0"),
        ("adapter_pfeiffer", {"reduction": 0}, "reduction must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named_in_the_error(
    method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tuning.make(method, **options)


def test_a_linear_probe_needs_a_head(params: Any, key: jax.Array) -> None:
    headless = {name: tree for name, tree in params.items() if name != "head"}
    with pytest.raises(ValueError, match="needs a model with a head"):
        tuning.make("linear_probe").add(headless, key)
