"""The ViT agrees with NumPy and with a loop over its blocks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.models import encoder, vit
from remem_jax.models.attention import Attention
from tests.oracles import vit_numpy

SIZE = vit.Size(patch=4, features=12, depth=3, heads=2)


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5, **options)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Parameters of which none is zero or one, so that each affects the outputs."""
    shapes = models.shapes(tiny(), 8)
    rng = np.random.default_rng(1)
    return {
        "params": jax.tree.map(
            lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), shapes
        )
    }


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize(
    ("alpha", "beta", "plain"),
    [(1.0, 1.0, False), (0.8, 1.0, False), (0.9, 0.7, False), (0.8, 0.6, True)],
)
def test_logits_match_equation_2(
    variables: Any, images: jax.Array, alpha: float, beta: float, plain: bool
) -> None:
    arrays: Any = traverse_util.flatten_dict(variables["params"], sep="/")
    expected = [
        vit_numpy.logits(
            arrays,
            np.asarray(image, np.float64),
            patch=4,
            heads=2,
            alpha=alpha,
            beta=beta,
            plain=plain,
        )
        for image in images
    ]
    residual = "plain" if plain else "two_minus"

    model = tiny(mlp_weight=alpha, attention_weight=beta, residual=residual)
    actual: Any = model.apply(variables, images)

    np.testing.assert_allclose(
        actual, expected, rtol=1e-4, atol=1e-4
    )  # The float32 error of 3 blocks.


@pytest.mark.parametrize("residual", vit.RESIDUALS)
def test_weights_of_1_equal_the_plain_network_bit_by_bit(
    variables: Any, images: jax.Array, residual: str
) -> None:
    plain = plain_loop(variables, images)

    weighed = tiny(mlp_weight=1.0, attention_weight=1.0, residual=residual).apply(variables, images)

    np.testing.assert_array_equal(weighed, plain)


def plain_loop(variables: Any, images: jax.Array) -> jax.Array:
    """Applies the ViT of vit_jax, written out, without re-weighting."""
    params = variables["params"]
    transformer = params["Transformer"]

    def tokens_of(images: jax.Array) -> jax.Array:
        patches = nn.Conv(12, (4, 4), strides=(4, 4), padding="VALID").apply(
            {"params": params["embedding"]}, images
        )
        patches: Any = patches
        tokens = patches.reshape(images.shape[0], -1, 12)
        cls = jnp.broadcast_to(params["cls"], (images.shape[0], 1, 12))
        return jnp.concatenate([cls, tokens], 1) + transformer["posembed_input"]["pos_embedding"]

    def block(tokens: Any, layer: Any) -> tuple[Any, None]:
        normed: Any = nn.LayerNorm().apply({"params": layer["LayerNorm_0"]}, tokens)
        attention = Attention(2, jnp.float32)
        update: Any = attention.apply(
            {"params": layer["MultiHeadDotProductAttention_1"]}, normed, normed
        )
        tokens = tokens + update
        normed = nn.LayerNorm().apply({"params": layer["LayerNorm_2"]}, tokens)
        mlp = layer["MlpBlock_3"]
        hidden: Any = nn.Dense(48).apply({"params": mlp["Dense_0"]}, normed)
        update = nn.Dense(12).apply({"params": mlp["Dense_1"]}, nn.gelu(hidden))
        return tokens + update, None

    layers = [transformer[f"encoderblock_{i}"] for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    tokens, _ = jax.lax.scan(block, tokens_of(images), stacked)
    normed: Any = nn.LayerNorm().apply({"params": transformer["encoder_norm"]}, tokens)
    head: Any = nn.Dense(5).apply({"params": params["head"]}, normed[:, 0])
    return head


def test_rematerialised_gradients_equal_the_stored_ones(variables: Any, images: jax.Array) -> None:
    def gradient(model: vit.VisionTransformer) -> Any:
        return jax.grad(lambda v: jnp.sum(jnp.asarray(model.apply(v, images)) ** 2))(variables)

    stored, recomputed = gradient(tiny()), gradient(tiny(rematerialise="blocks"))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), stored, recomputed
    )


def test_unrolled_blocks_equal_scanned_ones(variables: Any, images: jax.Array) -> None:
    def value_and_gradient(model: vit.VisionTransformer) -> Any:
        def loss(v: Any) -> jax.Array:
            return jnp.sum(jnp.asarray(model.apply(v, images)) ** 2)

        return jax.value_and_grad(loss)(variables)

    scanned = value_and_gradient(tiny(mlp_weight=0.8))
    unrolled = value_and_gradient(tiny(mlp_weight=0.8, scan=False, rematerialise="blocks"))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), scanned, unrolled
    )


@pytest.mark.parametrize("options", [{}, {"scan": False}, {"pruned_mlp": 2}])
def test_stacked_parameters_are_the_same_network(
    variables: Any, images: jax.Array, options: dict[str, Any]
) -> None:
    stacked = {"params": encoder.stack(variables["params"])}

    actual: Any = tiny(**options).apply(stacked, images)

    expected: Any = tiny(**options).apply(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    unstacked = encoder.unstack(stacked["params"])
    jax.tree.map(np.testing.assert_array_equal, unstacked, variables["params"])


def test_blocks_that_differ_are_not_stacked() -> None:
    params = models.init(tiny(pruned_mlp=1), jax.random.key(0), 8)["params"]

    assert encoder.stack(params) is params
    assert encoder.unstack(params) is params


def test_scanned_and_unrolled_blocks_have_the_same_dropout(
    variables: Any, images: jax.Array, key: jax.Array
) -> None:
    def dropped(scan: bool) -> Any:
        model = tiny(dropout=0.5, scan=scan)
        return model.apply(variables, images, train=True, rngs={"dropout": key})

    np.testing.assert_allclose(dropped(True), dropped(False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("mlps", "attentions"), [(1, 0), (0, 2), (2, 1), (3, 3)])
def test_pruning_equals_a_sub_block_whose_output_is_zero(
    variables: Any, images: jax.Array, mlps: int, attentions: int, scan: bool
) -> None:
    zeroed = jax.tree.map(lambda leaf: leaf, variables)  # Copies the dicts.
    outputs = [
        (mlps, "MlpBlock_3", "Dense_1"),
        (attentions, "MultiHeadDotProductAttention_1", "out"),
    ]
    for count, sub_block, output in outputs:
        for i in range(3 - count, 3):
            block = zeroed["params"]["Transformer"][f"encoderblock_{i}"]
            layers = block[sub_block]
            zeros = jax.tree.map(jnp.zeros_like, layers[output])
            block[sub_block] = layers | {output: zeros}
    pruned = tiny(pruned_mlp=mlps, pruned_attention=attentions, scan=scan)

    actual: Any = pruned.apply(variables, images)

    expected: Any = tiny().apply(zeroed, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    names = traverse_util.flatten_dict(dict(models.shapes(pruned, 8)), sep="/")
    assert sum("Dense_1/bias" in str(name) for name in names) == 3 - mlps
    assert sum("out/bias" in str(name) for name in names) == 3 - attentions


@pytest.mark.usefixtures("mixed_dtypes")  # Flax's norms mix dtypes.
def test_only_the_computation_is_in_half_precision(variables: Any, images: jax.Array) -> None:
    model = tiny(dtype="bfloat16")

    logits: Any = model.apply(variables, images)

    exact: Any = tiny().apply(variables, images)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(models.shapes(model, 8))} == {
        jnp.dtype("float32")
    }
    # bfloat16 has 8 bits, and the errors of six sub-blocks accumulate.
    np.testing.assert_allclose(logits, exact, atol=0.06 * float(np.abs(exact).max()))
    assert not np.array_equal(logits, exact)


def test_computed_positions_match_their_formula() -> None:
    positions = vit.sincos2d(3, 8)[0].reshape(3, 3, 8)

    expected = [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)]  # x = 2; y = 1.
    expected += [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4)]
    np.testing.assert_allclose(positions[1, 2], expected, rtol=1e-6)


def test_non_square_images_are_refused(variables: Any) -> None:
    with pytest.raises(ValueError, match=r"square images, got 4 x 16 pixels"):
        tiny().apply(variables, jnp.zeros((1, 4, 16, 3)))  # It has as many tokens as 8 x 8 pixels.


def test_pruning_more_blocks_than_the_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="pruned_mlp must be from 0 to the depth 12, got 13"):
        models.make("vit", variant="Ti/16", classes=2, pruned_mlp=13)


def test_uint8_images_are_refused(variables: Any) -> None:
    with pytest.raises(TypeError, match=r"float images in \[-1, 1\], got uint8"):
        tiny().apply(variables, jnp.zeros((1, 8, 8, 3), jnp.uint8))


def test_images_that_do_not_divide_into_patches_are_refused(variables: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.data\.image_size to a multiple of 4"):
        tiny().apply(variables, jnp.zeros((1, 10, 10, 3)))


def test_dropout_is_active_only_in_training(
    variables: Any, images: jax.Array, key: jax.Array
) -> None:
    model = tiny(dropout=0.5)
    evaluated: Any = model.apply(variables, images)

    dropped: Any = model.apply(variables, images, train=True, rngs={"dropout": key})

    np.testing.assert_array_equal(evaluated, tiny().apply(variables, images))
    assert not np.allclose(evaluated, dropped)


def test_dropout_differs_between_blocks(key: jax.Array) -> None:
    # With zero kernels and biases of one, a block only adds its dropout mask.
    params: Any = jax.tree.map(lambda s: jnp.zeros(s.shape), models.shapes(tiny(), 8))
    for i in range(3):
        params["Transformer"][f"encoderblock_{i}"]["MlpBlock_3"]["Dense_1"]["bias"] += 1.0
    params["Transformer"]["encoder_norm"]["scale"] += 1.0
    model = tiny(dropout=0.5)

    features: Any = model.apply(
        {"params": params},
        jnp.zeros((64, 8, 8, 3)),
        train=True,
        rngs={"dropout": key},
        method="pre_logits",
    )

    # Three independent masks sum to 0, 1, 2 or 3 times the scale; a repeated mask to 0 or 3.
    assert len(np.unique(np.round(features[0], 4))) > 2


def test_the_logits_of_a_new_head_are_zero() -> None:
    variables = models.init(tiny(), jax.random.key(0), 8)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], 0.0)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("Ti/16", 5_717_416), ("S/32", 22_878_952), ("S/16", 22_050_664), ("B/32", 88_224_232),
     ("B/16", 86_567_656), ("B/8", 86_576_872), ("L/16", 304_326_632), ("L/32", 306_535_400),
     ("H/14", 632_045_800), ("R+Ti/16", 6_337_704), ("R26+S/32", 36_431_912),
     ("R50+B/16", 98_659_112), ("R50+L/32", 328_994_856)],
)  # fmt: skip
def test_parameter_counts_match_vit_jax(variant: str, parameters: int) -> None:
    shapes = models.shapes(models.make("vit", variant=variant, classes=1000), 224)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown ViT variant 'B/15'.*B/16"):
        models.make("vit", variant="B/15", classes=2)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'resnet19'.*resnet18"):
        models.make("resnet19", classes=2)
