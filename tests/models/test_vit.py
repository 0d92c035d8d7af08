"""The ViT, against NumPy and against a loop over its own blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.models import vit
from tests.oracles import vit_numpy

SIZE = vit.Size(patch=4, features=12, depth=3, heads=2)


def tiny(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5, **options)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Parameters that are nowhere zero or one, so that nothing can hide."""
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
def test_logits_are_those_of_equation_2(
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

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)  # float32, 3 blocks.


@pytest.mark.parametrize("residual", vit.RESIDUALS)
def test_weights_of_one_are_bit_for_bit_the_plain_network(
    variables: Any, images: jax.Array, residual: str
) -> None:
    plain = plain_loop(variables, images)

    weighed = tiny(mlp_weight=1.0, attention_weight=1.0, residual=residual).apply(variables, images)

    np.testing.assert_array_equal(weighed, plain)


def plain_loop(variables: Any, images: jax.Array) -> jax.Array:
    """The ViT of vit_jax in Flax's own layers, written out, without any weights."""
    import flax.linen as nn

    params = variables["params"]
    encoder = params["Transformer"]

    def tokens_of(images: jax.Array) -> jax.Array:
        patches = nn.Conv(12, (4, 4), strides=(4, 4), padding="VALID").apply(
            {"params": params["embedding"]}, images
        )
        patches: Any = patches
        tokens = patches.reshape(images.shape[0], -1, 12)
        cls = jnp.broadcast_to(params["cls"], (images.shape[0], 1, 12))
        return jnp.concatenate([cls, tokens], 1) + encoder["posembed_input"]["pos_embedding"]

    def block(tokens: Any, layer: Any) -> tuple[Any, None]:
        normed: Any = nn.LayerNorm().apply({"params": layer["LayerNorm_0"]}, tokens)
        attention = nn.MultiHeadDotProductAttention(2)
        update: Any = attention.apply({"params": layer["MultiHeadDotProductAttention_1"]}, normed)
        tokens = tokens + update
        normed = nn.LayerNorm().apply({"params": layer["LayerNorm_2"]}, tokens)
        mlp = layer["MlpBlock_3"]
        hidden: Any = nn.Dense(48).apply({"params": mlp["Dense_0"]}, normed)
        update = nn.Dense(12).apply({"params": mlp["Dense_1"]}, nn.gelu(hidden))
        return tokens + update, None

    layers = [encoder[f"encoderblock_{i}"] for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    tokens, _ = jax.lax.scan(block, tokens_of(images), stacked)
    normed: Any = nn.LayerNorm().apply({"params": encoder["encoder_norm"]}, tokens)
    head: Any = nn.Dense(5).apply({"params": params["head"]}, normed[:, 0])
    return head


def test_rematerialised_gradients_are_the_stored_ones(variables: Any, images: jax.Array) -> None:
    def gradient(model: vit.VisionTransformer) -> Any:
        return jax.grad(lambda v: jnp.sum(jnp.asarray(model.apply(v, images)) ** 2))(variables)

    stored, recomputed = gradient(tiny()), gradient(tiny(rematerialise=True))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), stored, recomputed
    )


def test_images_of_uint8_are_refused(variables: Any) -> None:
    with pytest.raises(TypeError, match=r"float images in \[-1, 1\], got uint8"):
        tiny().apply(variables, jnp.zeros((1, 8, 8, 3), jnp.uint8))


def test_images_that_do_not_divide_into_patches_are_refused(variables: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.data\.image_size to a multiple of 4"):
        tiny().apply(variables, jnp.zeros((1, 10, 8, 3)))


def test_dropout_acts_in_training_only(variables: Any, images: jax.Array, key: jax.Array) -> None:
    model = tiny(dropout=0.5)
    kept: Any = model.apply(variables, images)

    dropped: Any = model.apply(variables, images, train=True, rngs={"dropout": key})

    np.testing.assert_array_equal(kept, tiny().apply(variables, images))
    assert not np.allclose(kept, dropped)


def test_dropout_differs_between_blocks(key: jax.Array) -> None:
    # With kernels of zero and biases of one, what a block adds is its own dropout mask alone.
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

    # Three independent masks sum to 0, 1, 2 or 3 times the scale; one mask used thrice, to 0 or 3.
    assert len(np.unique(np.round(features[0], 4))) > 2


def test_a_new_head_says_nothing() -> None:
    variables = models.init(tiny(), jax.random.key(0), 8)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], 0.0)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("Ti/16", 5_717_416), ("S/32", 22_878_952), ("S/16", 22_050_664), ("B/32", 88_224_232),
     ("B/16", 86_567_656), ("B/8", 86_576_872), ("L/16", 304_326_632), ("L/32", 306_535_400),
     ("H/14", 632_045_800)],
)  # fmt: skip
def test_parameter_counts_are_those_of_vit_jax(variant: str, parameters: int) -> None:
    shapes = models.shapes(models.make("vit", variant=variant, classes=1000), 224)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown ViT variant 'B/15'.*B/16"):
        models.make("vit", variant="B/15", classes=2)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'resnet19'.*resnet18"):
        models.make("resnet19", classes=2)
