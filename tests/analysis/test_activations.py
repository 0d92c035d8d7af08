"""Captured values of a ViT, against the ViT itself."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.analysis import activations, expertness
from remem_jax.models import encoder, tuning, vit
from remem_jax.models.attention import Attention
from remem_jax.models.rotary import Rotary
from remem_jax.records import Batch
from remem_jax.weights import augreg
from tests.oracles import peers
from tests.weights import test_timm_families as timm_peers
from tests.weights.timm_families import CLASSES, DEPTH, FAMILIES, SIDES

SIZE = vit.Size(patch=4, features=12, depth=3, heads=3, mlp=10)
TI16 = (
    "weights/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--"
    "imagenet2012-steps_20k-lr_0.03-res_224.npz"
)


class Case(NamedTuple):
    """A network, and values captured from it."""

    model: vit.VisionTransformer
    variables: dict[str, Any]
    images: jax.Array
    capture: activations.Capture
    captured: activations.Captured


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5, **options)


def variables_of(model: vit.VisionTransformer, rng: np.random.Generator) -> dict[str, Any]:
    """Random parameters, none of which is zero or one, so that each has an effect."""

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)

    return {"params": jax.tree.map(draw, models.shapes(model, 8))}


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)


@pytest.fixture(
    scope="module",
    params=[
        {"mlp_weight": 0.8, "rematerialise": "blocks"},
        {"mlp_weight": 0.8, "attention_weight": 0.7, "residual": "plain"},
        {"pruned_mlp": 1, "pruned_attention": 2, "scan": False},
        {"pool": "map", "gelu": "erf"},
        {"pool": "gap", "positions": "sincos2d", "representation": 12, "dropout": 0.5},
        {
            **{"registers": 2, "prefix_positions": False, "norm_pre": True, "layer_scale": True},
            **{"gated": True, "mlp_norm": True, "attention_norm": True, "mlp_weight": 0.8},
            "rope": Rotary("index"),
        },
        {
            **{"pool": "cls_gap", "norm": "rms", "qk_norm": True, "norm_last": False},
            **{"fc_norm": True, "positions": "none", "rope": Rotary("mixed"), "qkv_bias": "qv"},
        },
    ],
    ids=["two_minus", "plain", "pruned", "map", "gap", "clip_dinov2_eva", "rope_vit"],
)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(tiny(**request.param), [0, 1])


@pytest.fixture(scope="module")
def plain() -> Case:
    return case_of(tiny(), [0, 1, 2])


def case_of(model: vit.VisionTransformer, layers: list[int]) -> Case:
    rng = np.random.default_rng(1)
    variables = variables_of(model, rng)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    capture = jax.jit(activations.make_capture(model, layers))
    return Case(model, variables, images, capture, capture(variables, images))


def batches_of(images: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """All images in order; the last batch is padded with the first images, masked."""
    for first in range(0, len(images), batch_size):
        indices = np.arange(first, first + batch_size)
        wrapped = indices % len(images)
        mask = jnp.asarray(indices < len(images))
        yield Batch(jnp.asarray(images[wrapped]), jnp.asarray(wrapped), mask)


def test_the_embedding_is_the_input_of_the_head(case: Case) -> None:
    embed = jax.jit(functools.partial(case.model.apply, method="pre_logits"))

    expected = embed(case.variables, case.images)

    np.testing.assert_allclose(case.captured.embedding, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_hidden_layers_and_tokens_are_those_of_their_block(case: Case, layer: int) -> None:
    silenced = jax.tree.map(lambda leaf: leaf, case.variables)  # A copy of the dicts.
    mlp = silenced["params"]["Transformer"][f"encoderblock_{layer}"]["MlpBlock_3"]
    second, mlp["Dense_1"] = mlp["Dense_1"], jax.tree.map(jnp.zeros_like, mlp["Dense_1"])

    without = case.capture(silenced, case.images).tokens[layer]

    update = case.captured.hidden[layer] @ second["kernel"] + second["bias"][None, None]
    block = case.variables["params"]["Transformer"][f"encoderblock_{layer}"]
    update = update * block["gamma_2"][None, None] if "gamma_2" in block else update
    expected = without + case.model.mlp_weight * update
    np.testing.assert_allclose(case.captured.tokens[layer], expected, rtol=1e-4, atol=1e-4)


def test_the_rest_of_the_network_ends_in_the_same_embedding(case: Case) -> None:
    rest = activations.make_rest(case.model, case.variables, 0)

    actual = jax.jit(rest)(case.captured.tokens[0])

    np.testing.assert_allclose(actual, case.captured.embedding, rtol=1e-4, atol=1e-5)


def test_hidden_layers_are_captured_after_the_gelu(plain: Case) -> None:
    block = plain.variables["params"]["Transformer"]["encoderblock_1"]

    captured = plain.captured

    @jax.jit
    def hidden_of(tokens: jax.Array) -> Any:
        normed: Any = nn.LayerNorm().apply({"params": block["LayerNorm_0"]}, tokens)
        attention: Any = Attention(3, jnp.float32).apply(
            {"params": block["MultiHeadDotProductAttention_1"]}, normed, normed
        )
        normed = nn.LayerNorm().apply({"params": block["LayerNorm_2"]}, tokens + attention)
        return nn.Dense(10).apply({"params": block["MlpBlock_3"]["Dense_0"]}, normed)

    expected = nn.gelu(hidden_of(captured.tokens[0]))
    np.testing.assert_allclose(captured.hidden[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2_giant", "eva02_clip", "aimv2", "beit3", "clip_quickgelu"])
def test_hidden_layers_are_the_inputs_of_timms_last_layers(
    name: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    peer, checkpoint = timm_peers.saved(FAMILIES[name], tmp_path / "vit.safetensors")
    images = rng.uniform(-1, 1, (2, SIDES[0], SIDES[0], 3)).astype(np.float32)
    expected: list[Any] = []
    for block in peer.blocks:
        block.mlp.fc2.register_forward_pre_hook(lambda module, inputs: expected.append(inputs[0]))
    with peers.torch().no_grad():
        peer(timm_peers.as_torch(images))
    model = checkpoint.make(classes=CLASSES)

    capture = jax.jit(activations.make_capture(model, range(DEPTH)))
    captured = capture(augreg.into(checkpoint, model), jnp.asarray(images))

    for layer, hidden in enumerate(expected):
        timm_peers.require_close(captured.hidden[layer], hidden.numpy())


def test_only_the_chosen_blocks_are_captured(rng: np.random.Generator, images: jax.Array) -> None:
    variables = variables_of(tiny(), rng)

    captured = jax.eval_shape(activations.make_capture(tiny(), [1]), variables, images)

    assert list(captured.hidden) == list(captured.tokens) == [1]
    assert captured.hidden[1].shape == (2, 5, 10)


def test_stacked_parameters_give_the_same_values(plain: Case) -> None:
    stacked = {"params": encoder.stack(plain.variables["params"])}

    captured = plain.capture(stacked, plain.images)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        captured,
        plain.captured,
    )


def test_adapters_have_their_effect(
    rng: np.random.Generator, images: jax.Array, key: jax.Array
) -> None:
    tuned = tuning.make("adapter_pfeiffer", reduction=4)
    params = tuned.add(variables_of(tiny(), rng)["params"], key)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    capture = tuned.wrap(activations.make_capture(tiny(), [0, 1, 2]))

    captured = jax.jit(capture)({"params": params}, images)

    embed = tuned.wrap(functools.partial(tiny().apply, method="pre_logits"))
    expected = jax.jit(embed)({"params": params}, images)
    np.testing.assert_allclose(captured.embedding, expected, rtol=1e-4, atol=1e-4)
    assert {values.shape for values in captured.hidden.values()} == {(2, 5, 10)}


@pytest.mark.parametrize("layers", [[3], [-1], [0, 2]])
def test_blocks_without_an_mlp_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1, the blocks with an MLP"):
        activations.make_capture(tiny(pruned_mlp=1), layers)


def test_after_the_last_block_there_is_only_a_norm(plain: Case) -> None:
    stacked = {"params": encoder.stack(plain.variables["params"])}
    tokens = plain.captured.tokens[2]

    actual = activations.make_rest(plain.model, stacked, 2)(tokens[:, :1])

    norm = plain.variables["params"]["Transformer"]["encoder_norm"]
    expected: Any = nn.LayerNorm().apply({"params": norm}, tokens[:, 0])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_rows_are_those_of_each_example_once(plain: Case, rng: np.random.Generator) -> None:
    images = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    reduction = activations.make_reduction(
        plain.capture,
        lambda key, image: image / 2,
        lambda captured: (jax.tree.map(expertness.energy, captured.hidden), captured.embedding),
    )

    energies, embeddings = activations.rows(
        jax.jit(reduction), plain.variables, batches_of(images, 2)
    )

    captured = plain.capture(plain.variables, jnp.asarray(images / 2))
    expected = jnp.sum(jnp.square(captured.hidden[2]), axis=1)
    assert list(energies) == [0, 1, 2]
    np.testing.assert_allclose(energies[2], expected, rtol=1e-4)
    np.testing.assert_allclose(embeddings, captured.embedding, rtol=1e-4, atol=1e-5)


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        activations.rows(lambda variables, batch: batch.label, {}, [])


def test_a_published_network_has_the_reference_embedding(shared: pathlib.Path) -> None:
    if not (shared / TI16).is_file():
        pytest.skip(f"Needs {shared / TI16}.")
    model: Any = models.make("vit", variant="Ti/16", classes=1000)
    variables = augreg.load(shared / TI16, model)
    y, x, c = np.meshgrid(*(np.arange(k) for k in (224, 224, 3)), indexing="ij")
    waves = np.sin(2 * np.pi * (x / 224 + c / 3)) * np.cos(2 * np.pi * (c + 1) * y / 224)

    captured = jax.jit(activations.make_capture(model, [0, 11]))(
        variables, jnp.asarray(waves[None], jnp.float32)
    )

    expected = np.load(shared / "weights/reference_outputs.npz")
    pre_logits = expected["augreg_ti16_res224/tanh/pre_logits"][:1]
    np.testing.assert_allclose(captured.embedding, pre_logits, atol=1e-4)
    assert captured.hidden[11].shape == (1, 197, 768)
