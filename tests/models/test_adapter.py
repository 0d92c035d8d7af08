"""Adapters agree with a loop over blocks in NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import stats

from remem_jax import models
from remem_jax.models import adapter, vit
from tests.oracles import adapter_numpy

SIZE = vit.Size(patch=4, features=12, depth=3, heads=2)


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5, **options)


def random_like(shapes: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), shapes)


def flatten(params: Any) -> Any:
    return traverse_util.flatten_dict(params, sep="/")


def with_adapters(shapes: Any, placement: str) -> Any:
    """Returns the shapes of parameters with adapters."""
    add = functools.partial(adapter.add, placement=placement, reduction=4)
    return jax.eval_shape(add, shapes, jax.random.key(2))


@pytest.fixture(scope="module")
def params() -> Any:
    return random_like(models.shapes(tiny(), 8))


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize(("scan", "jit"), [(True, True), (True, False), (False, False)])
def test_fine_tuning_starts_from_exactly_the_pretrained_network(
    params: Any, images: jax.Array, key: jax.Array, scan: bool, jit: bool
) -> None:
    added = adapter.add(params, key, placement="houlsby", reduction=4)
    model = tiny(scan=scan)
    compiled = jax.jit if jit else lambda function: function

    first: Any = compiled(adapter.wrap(model.apply))({"params": added}, images)

    np.testing.assert_array_equal(first, compiled(model.apply)({"params": params}, images))


@pytest.mark.parametrize("placement", adapter.PLACEMENTS)
@pytest.mark.parametrize("options", [{}, {"scan": False}], ids=str)
def test_logits_match_a_loop_over_blocks(
    params: Any, images: jax.Array, placement: str, options: dict[str, Any]
) -> None:
    added = random_like(with_adapters(params, placement))
    expected = [
        adapter_numpy.logits(
            flatten(added), np.asarray(image, np.float64), patch=4, heads=2, alpha=0.8, beta=0.9
        )
        for image in images
    ]

    apply = jax.jit(adapter.wrap(tiny(mlp_weight=0.8, attention_weight=0.9, **options).apply))
    actual: Any = apply({"params": added}, images)

    np.testing.assert_allclose(
        actual, expected, rtol=1e-4, atol=1e-4
    )  # The float32 error of 3 blocks.


def test_rematerialised_gradients_match_differences_of_the_loop(
    params: Any, images: jax.Array, rng: np.random.Generator
) -> None:
    added = random_like(with_adapters(params, "houlsby"))
    apply = adapter.wrap(models.train_apply(tiny(rematerialise="blocks")))
    arrays = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(added).items()}
    adapters = [name for name in arrays if "Adapter_0" in name]
    direction = {name: rng.normal(size=arrays[name].shape) for name in adapters}

    def along(step: float) -> float:
        moved = arrays | {name: arrays[name] + step * direction[name] for name in adapters}
        image = np.asarray(images[0], np.float64)
        return adapter_numpy.logits(moved, image, patch=4, heads=2, alpha=1.0, beta=1.0)[0]

    def first_logit(params: Any) -> jax.Array:
        return apply(params, {}, images, jax.random.key(0))[0][0, 0]

    gradient = flatten(jax.jit(jax.grad(first_logit))(added))

    slope = sum(np.sum(gradient[name] * direction[name]) for name in adapters)
    np.testing.assert_allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-3)


@pytest.mark.usefixtures("mixed_dtypes")  # Flax's norms mix dtypes.
def test_the_adapter_computes_in_the_dtype_of_the_activations(
    params: Any, images: jax.Array
) -> None:
    added = with_adapters(params, "houlsby")
    new = added["Transformer"]["encoderblock_0"]["MlpBlock_3"]["Adapter_0"]
    tokens = jnp.ones((1, 2, 12), jnp.bfloat16)

    adapted: Any = jax.eval_shape(adapter.Adapter(3).apply, {"params": new}, tokens)

    assert adapted.dtype == jnp.bfloat16
    # The scan over blocks refuses blocks that change the dtype of the tokens.
    jax.eval_shape(adapter.wrap(tiny(dtype="bfloat16").apply), {"params": added}, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}


def test_attention_pooling_is_unchanged(key: jax.Array) -> None:
    shapes = models.shapes(tiny(pool="map"), 8)

    added = jax.eval_shape(lambda p: adapter.add(p, key, placement="houlsby", reduction=4), shapes)

    new = flatten(added).keys() - flatten(shapes).keys()
    assert len(new) == 3 * 2 * 4
    assert all(name.startswith("Transformer/encoderblock_") for name in new)


def test_without_adapters_the_outputs_are_unchanged(images: jax.Array) -> None:
    model = tiny(pool="map")
    variables = {"params": models.shapes(model, 8)}

    wrapped = jax.jit(adapter.wrap(model.apply)).lower(variables, images)

    assert wrapped.as_text() == jax.jit(model.apply).lower(variables, images).as_text()


def test_missing_sub_blocks_have_no_adapter(images: jax.Array) -> None:
    model = tiny(pruned_mlp=2, pruned_attention=1)

    added = with_adapters(models.shapes(model, 8), "houlsby")

    places = {tuple(name.split("/")[1:3]) for name in flatten(added) if "Adapter_0" in name}
    assert places == {
        ("encoderblock_0", "MultiHeadDotProductAttention_1"),
        ("encoderblock_0", "MlpBlock_3"),
        ("encoderblock_1", "MultiHeadDotProductAttention_1"),
    }
    logits: Any = jax.eval_shape(adapter.wrap(model.apply), {"params": added}, images)
    assert logits.shape == (2, 5)


def test_the_bottleneck_is_rounded_down(params: Any, key: jax.Array) -> None:
    added = flatten(adapter.add(params, key, placement="pfeiffer", reduction=5))
    name = "Transformer/encoderblock_0/MlpBlock_3/Adapter_0/down/kernel"
    assert added[name].shape == (12, 2)


def test_down_projections_differ_and_are_small(params: Any, key: jax.Array) -> None:
    added = flatten(adapter.add(params, key, placement="houlsby", reduction=1))

    drawn = [np.asarray(leaf) for name, leaf in added.items() if name.endswith("down/kernel")]

    assert len({kernel.tobytes() for kernel in drawn}) == 6
    expected = 1e-2 * stats.truncnorm(-2, 2).std()
    # For 864 samples, the standard error of the deviation is below 2.5 %.
    np.testing.assert_allclose(np.std(drawn), expected, rtol=0.1)
    assert np.max(np.abs(drawn)) <= 2e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "parallel"}, "placement must be one of houlsby, pfeiffer; got 'parallel'"),
        ({"placement": "houlsby", "reduction": 0}, "reduction must be at least 1, got 0"),
        ({"placement": "houlsby", "reduction": 13}, "reduction must be at most the 12 features"),
    ],
)
def test_wrong_options_are_named_in_the_error(
    params: Any, key: jax.Array, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.add(params, key, **options)


def test_a_model_without_sub_blocks_is_refused(key: jax.Array) -> None:
    params = {"conv1": {"kernel": jnp.zeros((3, 3, 3, 8))}}
    with pytest.raises(ValueError, match="no encoder block has such a sub-block"):
        adapter.add(params, key, placement="pfeiffer")
