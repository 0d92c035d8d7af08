"""Students' predictions of teacher features: agreement with torch, and properties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from remem_jax import models
from remem_jax.models import inverted_residual, projection, resnet, stages, tuning, vit
from remem_jax.models.architectures import Architecture, Head, Row
from tests.oracles import peers

SIZE = vit.Size(patch=8, features=12, depth=2, heads=2)
HYBRID = vit.Size(patch=2, features=12, depth=1, heads=2, stem=())
CHANNELS, WIDTH = 5, 12


@pytest.fixture
def layer(rng: np.random.Generator) -> dict[str, Array]:
    """The parameters of a projection."""
    return {
        "kernel": jnp.asarray(rng.normal(size=(CHANNELS, WIDTH)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=WIDTH), jnp.float32),
    }


@pytest.fixture
def images(rng: np.random.Generator) -> Float[Array, "batch height width channel"]:
    return jnp.asarray(rng.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("rows", "side"), [(2, 4), (1, 3), (4, 4), (3, 5), (7, 3), (4, 2)])
def test_predicted_patches_and_their_gradients_match_torch(
    rng: np.random.Generator, layer: dict[str, Array], rows: int, side: int
) -> None:
    torch = peers.torch()
    maps, weights = normal(rng, 2, rows, rows, CHANNELS), normal(rng, 2, side**2, WIDTH)
    leaves = [
        torch.tensor(np.asarray(x, np.float64), requires_grad=True)
        for x in (layer["kernel"], layer["bias"], maps)
    ]
    projected = torch.einsum("bhwc,cd->bdhw", leaves[2], leaves[0]) + leaves[1][:, None, None]
    theirs = torch.nn.functional.interpolate(
        projected, size=(side, side), mode="bilinear", align_corners=False, antialias=rows > side
    )
    theirs = theirs.flatten(2).transpose(1, 2)
    (theirs * torch.tensor(np.asarray(weights, np.float64))).sum().backward()

    def loss(kernel: Array, bias: Array, maps: Array) -> tuple[Array, Array]:
        actual = projection.patches({"kernel": kernel, "bias": bias}, maps, side)
        return jnp.sum(actual * weights), actual

    grads, ours = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*layer.values(), maps)

    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_a_predicted_cls_token_is_the_projection_of_the_mean(
    rng: np.random.Generator, layer: dict[str, Array]
) -> None:
    maps = normal(rng, 2, 3, 3, CHANNELS)
    expected = np.asarray(maps).mean((1, 2)) @ np.asarray(layer["kernel"]) + layer["bias"][None]

    np.testing.assert_allclose(projection.cls(layer, maps), expected, rtol=1e-4, atol=1e-5)


def test_patches_are_computed_in_the_dtype_of_the_maps(layer: dict[str, Array]) -> None:
    maps = jnp.ones((1, 2, 2, CHANNELS), jnp.bfloat16)
    assert projection.patches(layer, maps, 4).dtype == jnp.bfloat16


def test_a_new_projection_is_lecun_normal_and_can_be_removed(key: jax.Array) -> None:
    variables = {"params": {"fc": jnp.ones(3)}, "batch_stats": {"mean": jnp.zeros(3)}}

    added = projection.add(variables, key, {"patches": (400, 200)})

    new = added["params"][projection.NAME]
    assert new["kernel"].std() == pytest.approx(400**-0.5, rel=0.02)
    np.testing.assert_array_equal(new["bias"], jnp.zeros(200))
    assert projection.without(added) == variables
    assert projection.without(variables) == variables


SMALL_VIT = vit.VisionTransformer(
    SIZE._replace(depth=5), classes=3, dropout=0.3, drop_path=0.3, initialisation="timm"
)
ALL_TARGETS = tuple(
    projection.Target(field, side=4, width=WIDTH, layers=3)
    for field in ("patches", "cls", "pooled", "layers")
)


@pytest.mark.parametrize(
    "model",
    [
        resnet.make(depths=(1, 1), classes=3),
        inverted_residual.make(
            Architecture(
                8, ((Row("inverted", 8, 2, stride=2, expansion=2),),), "relu6", head=Head(16)
            ),
            classes=3,
            dropout=0.5,
            drop_path=0.5,
        ),
        SMALL_VIT,
    ],
    ids=["resnet", "mobilenet", "vit"],
)
def test_predicting_features_changes_neither_logits_nor_statistics(
    model: Any, images: Array, key: jax.Array
) -> None:
    variables = models.init(model, key, 32)
    added = projection.add(variables, key, models.projected(model, ALL_TARGETS, 32))["params"]
    statistics = {name: tree for name, tree in variables.items() if name != "params"}

    plain, statistics_after = jax.jit(models.student_apply(model))(
        variables["params"], statistics, images, key
    )
    with_features, also_kept = jax.jit(models.student_apply(model, ALL_TARGETS))(
        added, statistics, images, key
    )

    assert plain.patches is None
    assert with_features.patches.shape == (2, 16, WIDTH)
    number = min(3, len(stages.of_student(model, 32)))
    assert [layer.shape for layer in with_features.layers] == [(2, 16, WIDTH)] * number
    assert with_features.cls.shape == with_features.pooled.shape == (2, WIDTH)
    np.testing.assert_allclose(with_features.logits, plain.logits, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        statistics_after,
        also_kept,
    )


def outputs_of(model: vit.VisionTransformer, params: Any, images: Array, method: str) -> Any:
    """Returns a tuned teacher's outputs with all features, its logits, and its parameters."""
    options: Any = {"rank": 2} if method == "lora" else {"reduction": 4}
    tuned = tuning.make(method, **({} if method in ("full", "linear_probe") else options))
    rng = np.random.default_rng(2)
    added = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32),
        tuned.add(params, jax.random.key(1)),
    )
    fields = ("patches", "cls") if model.pool == "cls" else ("patches",)
    outputs = jax.jit(tuned.wrap(models.teacher_apply(model, fields)))({"params": added}, images)
    logits = jax.jit(tuned.wrap(models.evaluation_apply(model)))({"params": added}, images)
    return outputs, logits, added


@pytest.mark.parametrize("method", tuning.METHODS)
@pytest.mark.parametrize("size", [SIZE, HYBRID], ids=["plain", "hybrid"])
def test_a_teacher_returns_the_input_of_its_head_for_any_tuning_method(
    images: Array, method: str, size: vit.Size
) -> None:
    model = vit.VisionTransformer(size, classes=3)
    params = models.init(model, jax.random.key(0), 32)["params"]

    outputs, logits, added = outputs_of(model, params, images, method)

    assert outputs.patches.shape == (2, 16, 12)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)
    head = added["head"]
    from_cls = outputs.cls @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(from_cls, logits, rtol=1e-4, atol=1e-5)


def test_all_tokens_of_a_teacher_without_cls_are_patches(images: Array) -> None:
    model = vit.VisionTransformer(SIZE, classes=3, pool="gap")
    params = models.init(model, jax.random.key(0), 32)["params"]

    outputs, logits, added = outputs_of(model, params, images, "full")

    assert outputs.cls is None
    from_mean = outputs.patches.mean(1) @ added["head"]["kernel"] + added["head"]["bias"][None]
    np.testing.assert_allclose(from_mean, logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"'gap', has no \[CLS\]"):
        models.teacher_apply(model, ("cls",))


@pytest.mark.parametrize("pool", ["cls", "gap", "map", "cls_gap"])
def test_the_pooled_features_of_a_teacher_are_what_its_head_pools(images: Array, pool: str) -> None:
    model = vit.VisionTransformer(SIZE, classes=3, pool=pool, initialisation="timm")
    variables = models.init(model, jax.random.key(0), 32)

    outputs = jax.jit(models.teacher_apply(model, ("pooled",)))(variables, images)

    head = variables["params"]["head"]
    assert outputs.pooled.shape == (2, 12)
    if pool == "cls_gap":
        tokens: Any = model.apply(variables, images, method="trunk")
        np.testing.assert_allclose(outputs.pooled, tokens[:, 0], rtol=1e-4, atol=1e-5)
    else:
        logits = outputs.pooled @ head["kernel"] + head["bias"][None]
        np.testing.assert_allclose(logits, outputs.logits, rtol=1e-4, atol=1e-5)


def test_features_that_were_not_requested_are_not_returned(images: Array) -> None:
    model = vit.VisionTransformer(SIZE, classes=3)
    variables = models.init(model, jax.random.key(0), 32)

    outputs = models.teacher_apply(model)(variables, images)

    assert (outputs.patches, outputs.cls) == (None, None)
