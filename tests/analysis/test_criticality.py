"""Criticality, against a loop that runs the whole network without each of the neurons."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.analysis import criticality
from remem_jax.models import encoder, tuning, vit
from remem_jax.records import Batch
from remem_jax.weights import augreg
from tests.oracles import peers
from tests.weights import test_timm_families as timm_peers
from tests.weights.timm_families import CLASSES, FAMILIES, SIDES

SIZE = vit.Size(patch=4, features=8, depth=3, heads=2, mlp=7)
EXAMPLES = 5


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=3, **options)


def variables_of(model: vit.VisionTransformer, rng: np.random.Generator) -> dict[str, Any]:
    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)

    return {"params": jax.tree.map(draw, models.shapes(model, 8))}


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(-1, 1, (EXAMPLES, 8, 8, 3)), jnp.float32)


def same(key: jax.Array, image: jax.Array) -> jax.Array:
    del key
    return image


def batch_of(images: jax.Array, mask: Any = True) -> Batch:
    labels = jnp.zeros(len(images), jnp.int32)
    return Batch(images, labels, jnp.broadcast_to(jnp.asarray(mask), labels.shape))


@functools.cache
def embedding_of(model: vit.VisionTransformer) -> Any:
    return jax.jit(functools.partial(model.apply, method="pre_logits"))


def loop(model: Any, variables: Any, images: jax.Array, layer: int) -> np.ndarray:
    """Runs the network with the output weights of one neuron after another set to zero."""
    embed = embedding_of(model)
    unchanged, influences = np.asarray(embed(variables, images), np.float64), []
    for neuron in range(model.size.hidden):
        without = jax.tree.map(lambda leaf: leaf, variables)  # A copy of the dicts.
        block = without["params"]["Transformer"][f"encoderblock_{layer}"]
        output = block["MlpBlock_3"]["Dense_1"]
        output["kernel"] = output["kernel"].at[neuron].set(0.0)
        changed = np.asarray(embed(without, images), np.float64)
        influences.append(
            np.linalg.norm(changed - unchanged, axis=-1) / np.linalg.norm(unchanged, axis=-1)
        )
    return np.stack(influences, axis=1)


@pytest.mark.parametrize("layer", [2, 1, 0])
@pytest.mark.parametrize(
    "options",
    [
        {"mlp_weight": 0.8},
        {"mlp_weight": 0.8, "residual": "plain", "scan": False},
    ],
)
def test_influence_equals_the_loop(
    rng: np.random.Generator, images: jax.Array, options: dict[str, Any], layer: int
) -> None:
    model = tiny(**options)
    variables = variables_of(model, rng)
    influence = criticality.make_influence(model, same, layer=layer, chunk=3)

    actual = jax.jit(influence)(variables, batch_of(images))

    expected = loop(model, variables, images, layer)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"pool": "gap", "attention_weight": 0.7}, 2),
        ({"pool": "map", "positions": "sincos2d"}, 0),
        ({"representation": 8}, 2),
        ({"pruned_attention": 1}, 1),
        ({"pruned_mlp": 1}, 1),
    ],
)
def test_influence_in_other_networks_equals_the_loop(
    rng: np.random.Generator, images: jax.Array, options: dict[str, Any], layer: int
) -> None:
    model = tiny(**options)
    variables = variables_of(model, rng)
    influence = criticality.make_influence(model, same, layer=layer, chunk=7)

    actual = jax.jit(influence)(variables, batch_of(images))

    expected = loop(model, variables, images, layer)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"), [("dinov2_giant", 2), ("eva02_clip", 0), ("pe_core", 1), ("dinov3", 2)]
)
def test_influence_equals_a_loop_over_timms_neurons(
    rng: np.random.Generator, name: str, layer: int, tmp_path: pathlib.Path
) -> None:
    peer, checkpoint = timm_peers.saved(FAMILIES[name], tmp_path / "vit.safetensors")
    model = checkpoint.make(classes=CLASSES)
    images = rng.uniform(-1, 1, (2, SIDES[0], SIDES[0], 3)).astype(np.float32)
    influence = criticality.make_influence(model, same, layer=layer, chunk=16)

    actual = jax.jit(influence)(augreg.into(checkpoint, model), batch_of(jnp.asarray(images)))

    np.testing.assert_allclose(actual, loop_of_timm(peer, images, layer), rtol=2e-3, atol=1e-4)


def loop_of_timm(peer: Any, images: np.ndarray, layer: int) -> np.ndarray:
    """Runs timm's module, in float64, with one neuron after another set to zero by a hook."""
    torch, last = peers.torch(), peer.double().blocks[layer].mlp.fc2
    pixels = timm_peers.as_torch(images).double()

    def embed() -> np.ndarray:
        return peer.forward_head(peer.forward_features(pixels), pre_logits=True).numpy()

    influences = []
    with torch.no_grad():
        unchanged = embed()
        for neuron in range(last.in_features):
            keep = torch.arange(last.in_features) != neuron
            hook = last.register_forward_pre_hook(lambda module, x, keep=keep: x[0] * keep)
            change = np.linalg.norm(embed() - unchanged, axis=-1)
            influences.append(change / np.linalg.norm(unchanged, axis=-1))
            hook.remove()
    return np.stack(influences, axis=1)


@pytest.mark.parametrize("chunk", [1, 100])
def test_chunks_make_no_difference(rng: np.random.Generator, images: jax.Array, chunk: int) -> None:
    variables = variables_of(tiny(), rng)
    stacked = {"params": encoder.stack(variables["params"])}
    influence = criticality.make_influence(tiny(), same, layer=2, chunk=chunk)

    actual = jax.jit(influence)(stacked, batch_of(images))

    np.testing.assert_allclose(actual, loop(tiny(), variables, images, 2), rtol=1e-3, atol=1e-5)


def test_stacked_parameters_have_the_same_influence(
    rng: np.random.Generator, images: jax.Array
) -> None:
    variables = variables_of(tiny(), rng)
    influence = criticality.make_influence(tiny(), same, layer=1, chunk=7)

    actual = jax.jit(influence)({"params": encoder.stack(variables["params"])}, batch_of(images))

    np.testing.assert_allclose(actual, loop(tiny(), variables, images, 1), rtol=1e-3, atol=1e-5)


def test_bfloat16_models_are_computed_in_float32(
    rng: np.random.Generator, images: jax.Array
) -> None:
    variables = variables_of(tiny(), rng)
    influence = criticality.make_influence(tiny(dtype="bfloat16"), same, layer=2, chunk=7)

    actual = jax.jit(influence)(variables, batch_of(images))

    np.testing.assert_allclose(actual, loop(tiny(), variables, images, 2), rtol=1e-3, atol=1e-5)


def test_the_largest_influences_are_found_over_all_batches(
    rng: np.random.Generator, images: jax.Array
) -> None:
    variables = variables_of(tiny(), rng)
    influence = jax.jit(criticality.make_influence(tiny(), same, layer=2, chunk=7))

    def batches() -> Iterator[Batch]:
        yield batch_of(images[:2])
        yield batch_of(images[2:4])
        # Padded with an example that would have the largest influence.
        yield batch_of(jnp.stack([images[4], images[0]]), [True, False])

    result = criticality.criticality(influence, variables, batches(), ranks=3)

    expected = loop(tiny(), variables, images, 2)
    largest_first = np.argsort(-expected, axis=0)[:3]
    largest = np.take_along_axis(expected, largest_first, axis=0)
    np.testing.assert_allclose(result.value, largest, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.example, largest_first)
    assert result.examples == EXAMPLES


def test_a_resumed_computation_equals_an_uninterrupted_one(
    images: jax.Array, rng: np.random.Generator
) -> None:
    changes = [jnp.asarray(rng.uniform(size=(5, 4)), jnp.float32) for _ in range(3)]
    batches = [batch_of(images, [True, True, True, True, False])] * 3

    def find(which: slice, **before: Any) -> criticality.Criticality:
        influences = iter(changes[which])
        return criticality.criticality(
            lambda variables, batch: next(influences), {}, batches[which], ranks=2, **before
        )

    at_once = find(slice(None))
    saved: list[criticality.Criticality] = []
    find(slice(2), on_batch=saved.append)
    later = find(slice(2, None), before=saved[-1])

    np.testing.assert_array_equal(later.value, at_once.value)
    np.testing.assert_array_equal(later.example, at_once.example)
    assert later.examples == at_once.examples == 12


def test_masked_examples_and_later_ties_are_ignored(images: jax.Array) -> None:
    batches = [
        batch_of(images, [True, False, True, False, False]),
        batch_of(images, [False] * 5),
        batch_of(images, [True, True, False, False, False]),
    ]
    changes = iter(jnp.array([[[1], [9], [2], [9], [9]], [[9]] * 5, [[2], [1], [9], [9], [9.0]]]))

    result = criticality.criticality(lambda variables, batch: next(changes), {}, batches, ranks=5)

    np.testing.assert_array_equal(result.value[:, 0], [2, 2, 1, 1, -1])
    np.testing.assert_array_equal(result.example[:, 0], [1, 2, 0, 3, -1])


def test_lora_has_the_influence_of_its_merged_weights(
    rng: np.random.Generator, images: jax.Array, key: jax.Array
) -> None:
    tuned = tuning.make("lora", targets=("Dense_0", "Dense_1"), rank=2, scale=2.0)
    params = tuned.add(variables_of(tiny(), rng)["params"], key)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    influence = tuned.wrap(criticality.make_influence(tiny(), same, layer=2, chunk=7))

    actual = jax.jit(influence)({"params": params}, batch_of(images))

    expected = loop(tiny(), tuned.merge({"params": params}), images, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_adapters_are_refused(rng: np.random.Generator, images: jax.Array, key: jax.Array) -> None:
    tuned = tuning.make("adapter_pfeiffer", reduction=4)
    params = tuned.add(variables_of(tiny(), rng)["params"], key)
    influence = tuned.wrap(criticality.make_influence(tiny(), same, layer=2, chunk=7))

    with pytest.raises(ValueError, match="not implemented for a ViT with adapters"):
        influence({"params": params}, batch_of(images))


def test_a_chunk_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        criticality.make_influence(tiny(), same, layer=2, chunk=0)


def test_a_block_without_an_mlp_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1, the blocks with an MLP"):
        criticality.make_influence(tiny(pruned_mlp=1), same, layer=2, chunk=7)


def test_no_examples_are_refused(images: jax.Array) -> None:
    empty = batch_of(images, [False] * 5)

    with pytest.raises(ValueError, match="contain no examples"):
        criticality.criticality(lambda variables, batch: jnp.ones((5, 2)), {}, [empty], ranks=1)


def test_embeddings_that_are_not_finite_are_refused(images: jax.Array) -> None:
    with pytest.raises(ValueError, match="embeddings are NaN or zero"):
        criticality.criticality(
            lambda variables, batch: jnp.full((5, 2), jnp.nan), {}, [batch_of(images)], ranks=1
        )
