"""The ViT and its gradients agree with timm's and torch's autograd."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import losses, models
from remem_jax.models import vit
from remem_jax.weights import augreg, timm_names
from tests.oracles import peers

POOLS = {
    "cls": {"global_pool": "token"},
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "map": {"global_pool": "map", "class_token": False},
}


@pytest.mark.parametrize(
    ("pool", "size", "pixels"),
    [
        ("cls", vit.Size(patch=16, features=48, depth=2, heads=3), 96),
        ("cls", vit.Size(patch=32, features=48, depth=1, heads=3), 384),
        ("gap", vit.Size(patch=16, features=64, depth=2, heads=4), 48),
        ("map", vit.Size(patch=8, features=48, depth=1, heads=3), 40),
    ],
)
def test_logits_features_and_gradients_match_timm(
    pool: str, size: vit.Size, pixels: int, rng: np.random.Generator
) -> None:
    torch, library = peers.torch(), peers.timm()
    theirs = library.models.vision_transformer.VisionTransformer(
        img_size=pixels,
        patch_size=size.patch,
        embed_dim=size.features,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=5,
        **POOLS[pool],
    )
    ours: Any = vit.make(variant=size, classes=5, pool=pool, gelu="erf")
    arrays = {
        name: rng.normal(1.0 if name.endswith("scale") else 0.0, 0.15, shape).astype(np.float32)
        for name, shape in augreg.names_and_shapes(ours, pixels).items()
    }
    params: Any = traverse_util.unflatten_dict(arrays, sep="/")
    state = {name: torch.from_numpy(a) for name, a in timm_names.to_timm(arrays).items()}
    theirs.load_state_dict(state, strict=True)
    images = rng.uniform(-1, 1, (2, pixels, pixels, 3)).astype(np.float32)
    labels = np.array([1, 4], np.int32)

    def loss(params: Any) -> Any:
        logits = ours.apply({"params": params}, images)
        return losses.cross_entropy(logits, jnp.asarray(labels)), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    features: Any = ours.apply({"params": params}, images, method="pre_logits")

    their_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    their_tokens = theirs.forward_features(their_images)
    their_features = theirs.forward_head(their_tokens, pre_logits=True)
    their_logits = theirs(their_images)
    torch.nn.functional.cross_entropy(their_logits, torch.from_numpy(labels).long()).backward()
    prefix = int(pool == "cls")
    fields = ("patches", "cls")[: 1 + prefix]
    outputs = jax.jit(models.teacher_apply(ours, fields))({"params": params}, jnp.asarray(images))
    np.testing.assert_allclose(
        outputs.patches, their_tokens[:, prefix:].detach().numpy(), atol=1e-4
    )
    if prefix:
        np.testing.assert_allclose(outputs.cls, their_tokens[:, 0].detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(features, their_features.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, their_logits.detach().numpy(), atol=1e-4)
    converted = timm_names.to_timm(
        augreg.flatten(gradients)
    )  # Gradients are renamed like parameters.
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        scale = max(float(np.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(
            converted[name], expected, atol=1e-4 * scale, err_msg=name
        )  # float32 sums over up to 145 tokens.


def test_the_published_sizes_match_timm() -> None:
    torch, library = peers.torch(), peers.timm()
    for variant, name in {"Ti/16": "vit_tiny_patch16_224", "B/8": "vit_base_patch8_224"}.items():
        with torch.device("meta"):
            theirs = library.create_model(name)
        shapes = models.shapes(models.make("vit", variant=variant, classes=1000), 224)
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert size == sum(p.numel() for p in theirs.parameters())
