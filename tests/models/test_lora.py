"""LoRA agrees with a network whose kernels were changed in NumPy, one head at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.models import lora, vit
from tests.oracles import vit_numpy

SIZE = vit.Size(patch=4, features=12, depth=3, heads=2)
ALL = tuple(target for target in lora.TARGETS if target != "gate")  # Those of a plain ViT.


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5, **options)


def random_like(shapes: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), shapes)


def flatten(params: Any) -> Any:
    return traverse_util.flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def params() -> Any:
    return random_like(models.shapes(tiny(), 8))


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("scan", [True, False])
def test_fine_tuning_starts_from_exactly_the_pretrained_network(
    params: Any, images: jax.Array, key: jax.Array, scan: bool
) -> None:
    apply = jax.jit(tiny(scan=scan).apply)
    added = lora.add(params, key, targets=ALL, rank=4)

    first: Any = apply({"params": jax.jit(lora.merge)(added)}, images)

    np.testing.assert_array_equal(first, apply({"params": params}, images))


def changed(arrays: dict[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """Adds the changes to the kernels in float64, in loops over heads and, for `out`, rows."""
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    plain = {name: array.copy() for name, array in arrays.items() if "lora" not in name}
    for name in (name.removesuffix("/lora_a") for name in arrays if name.endswith("lora_a")):
        kernel = plain[f"{name}/kernel"]
        a, b = arrays[f"{name}/lora_a"], arrays[f"{name}/lora_b"]
        share = scale / a.shape[1]
        if name.endswith("out"):
            width = kernel.shape[1]
            for head in range(kernel.shape[0]):
                kernel[head] += share * a[head * width : (head + 1) * width] @ b
        elif "Attention" in name:
            width = kernel.shape[2]
            for head in range(kernel.shape[1]):
                kernel[:, head] += share * a @ b[:, head * width : (head + 1) * width]
        else:
            kernel += share * a @ b
    return plain


@pytest.mark.parametrize("targets", [("query", "value"), ALL])
def test_merged_logits_match_changed_kernels(
    params: Any, images: jax.Array, key: jax.Array, targets: tuple[str, ...]
) -> None:
    add = functools.partial(lora.add, targets=targets, rank=4)
    added = random_like(jax.eval_shape(add, params, key))
    expected = [
        vit_numpy.logits(
            changed(flatten(added), scale=2.0),
            np.asarray(image, np.float64),
            patch=4,
            heads=2,
            alpha=0.8,
            beta=0.9,
            plain=False,
        )
        for image in images
    ]

    model = tiny(mlp_weight=0.8, attention_weight=0.9)
    actual: Any = model.apply({"params": lora.merge(added, scale=2.0)}, images)

    np.testing.assert_allclose(
        actual, expected, rtol=1e-4, atol=1e-4
    )  # The float32 error of 3 blocks.


def test_a_target_computes_x_w_plus_scaled_x_a_b(
    params: Any, key: jax.Array, rng: np.random.Generator
) -> None:
    added = random_like(lora.add(params, key, rank=4))
    arrays = flatten(added)
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query"
    kernel, a, b = (
        np.asarray(arrays[f"{name}/{leaf}"], np.float64) for leaf in ("kernel", "lora_a", "lora_b")
    )
    x = rng.normal(size=(3, 12))

    merged = flatten(lora.merge(added, scale=32))[f"{name}/kernel"]

    expected = x @ kernel.reshape(12, 12) + 32 / 4 * (x @ a) @ b
    np.testing.assert_allclose(x @ np.asarray(merged).reshape(12, 12), expected, rtol=1e-4)


def test_the_gradient_is_the_chain_rule_on_the_merged_kernel(
    params: Any, key: jax.Array, rng: np.random.Generator
) -> None:
    added = random_like(lora.add(params, key, rank=4))
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/value"
    a, b = (np.asarray(flatten(added)[f"{name}/{leaf}"], np.float64) for leaf in lora.LEAVES)
    change = jnp.asarray(
        rng.normal(size=(12, 2, 6)), jnp.float32
    )  # The gradient with respect to the kernel.

    def loss(params: Any) -> jax.Array:
        return jnp.sum(change * flatten(lora.merge(params, scale=8))[f"{name}/kernel"])

    gradient = flatten(jax.grad(loss)(added))

    matrix = np.asarray(change, np.float64).reshape(12, 12)
    np.testing.assert_allclose(gradient[f"{name}/lora_a"], 8 / 4 * matrix @ b.T, atol=1e-5)
    np.testing.assert_allclose(gradient[f"{name}/lora_b"], 8 / 4 * a.T @ matrix, atol=1e-5)


def test_a_is_gaussian_with_loralibs_variance_and_b_is_zero(key: jax.Array) -> None:
    params = {"encoderblock_0": {"Attention": {"query": {"kernel": jnp.zeros((300, 5, 20))}}}}

    added: Any = lora.add(params, key, targets=("query",), rank=100)

    query = added["encoderblock_0"]["Attention"]["query"]
    assert query["lora_a"].shape == (300, 100)
    assert query["lora_b"].shape == (100, 100)
    # For 30,000 samples, the standard error of the deviation is 0.4 %.
    np.testing.assert_allclose(np.std(query["lora_a"]), 1 / 30, rtol=0.02)
    np.testing.assert_allclose(np.mean(np.abs(query["lora_a"]) < 1 / 30), 0.6827, atol=0.01)
    np.testing.assert_array_equal(query["lora_b"], 0.0)


def test_each_kernel_has_its_own_a(params: Any, key: jax.Array) -> None:
    added = flatten(lora.add(params, key, rank=4))
    drawn = [np.asarray(leaf) for name, leaf in added.items() if name.endswith("lora_a")]
    assert len({a.tobytes() for a in drawn}) == 6


def test_merging_keeps_names_and_other_arrays(params: Any, key: jax.Array) -> None:
    before = flatten(params)

    after = flatten(lora.merge(random_like(lora.add(params, key, rank=4))))

    assert {n: a.shape for n, a in after.items()} == {n: a.shape for n, a in before.items()}


def test_a_tree_without_lora_is_returned_unchanged(params: Any) -> None:
    assert lora.merge(params) is params


def test_attention_pooling_is_unchanged(key: jax.Array) -> None:
    shapes = models.shapes(tiny(pool="map"), 8)

    added = jax.eval_shape(lambda p: lora.add(p, key, targets=ALL), shapes)

    new = flatten(added).keys() - flatten(shapes).keys()
    assert len(new) == 3 * 6 * 2
    assert all(name.startswith("Transformer/encoderblock_") for name in new)


def test_blocks_without_attention_are_unchanged(key: jax.Array) -> None:
    shapes = models.shapes(tiny(pruned_attention=1), 8)

    added = jax.eval_shape(lambda p: lora.add(p, key), shapes)

    new = flatten(added).keys() - flatten(shapes).keys()
    assert {name.split("/")[1] for name in new} == {"encoderblock_0", "encoderblock_1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"targets": ("quary",)}, "targets must be one of query, .*; got 'quary'"),
        ({"targets": ()}, "targets must name at least one of query"),
    ],
)
def test_wrong_options_are_named_in_the_error(
    params: Any, key: jax.Array, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lora.add(params, key, **options)


def test_the_gate_of_an_mlp_that_has_none_is_refused(params: Any, key: jax.Array) -> None:
    with pytest.raises(ValueError, match="targets: no encoder block has gate"):
        lora.add(params, key, targets=("query", "gate"))


def test_a_target_that_no_block_has_is_named(key: jax.Array) -> None:
    params = {"conv1": {"kernel": jnp.zeros((3, 3, 3, 8))}}
    with pytest.raises(ValueError, match="no encoder block has query, value"):
        lora.add(params, key)
