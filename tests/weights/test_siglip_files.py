"""Image towers of big_vision's SigLIP and SigLIP 2 files are those that timm reads from them."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax.weights import augreg
from tests.oracles import peers
from tests.weights import test_timm_families as timm_peers
from tests.weights.test_formats import PLAIN, filled, in_linen, model_of, stacked, store, under

SIDE = 16
IMAGE = "params/img/"
OTHERS = {
    "params/txt/Embed_0/embedding": np.ones((7, 12), np.float32),
    "params/txt/Encoder_0/encoder_norm/scale": np.ones(12, np.float32),
    "params/t": np.ones(1, np.float32),
    "params/b": np.ones(1, np.float32),
}


@pytest.fixture(params=["each block", "all blocks"])
def tower(
    request: pytest.FixtureRequest, rng: np.random.Generator, tmp_path: pathlib.Path
) -> pathlib.Path:
    """A file with two towers, whose blocks have names of their own or are stacked."""
    arrays = filled(model_of(pool="map"), rng, SIDE)
    headless = {name: 0.5 * a for name, a in arrays.items() if not name.startswith("head/")}
    renamed = in_linen(headless)
    path = tmp_path / "siglip.npz"
    form = stacked if request.param == "all blocks" else dict
    store(path, under(IMAGE, form(renamed)) | OTHERS)
    return path


@pytest.mark.parametrize("subtree", ["", ":params/img"])
def test_the_image_tower_is_timms(
    tower: pathlib.Path, subtree: str, rng: np.random.Generator
) -> None:
    images = rng.uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    tokens, pooled = of_timm(tower, images, prefix=IMAGE if subtree else "")

    checkpoint = augreg.read(f"{tower}{subtree}")
    model = checkpoint.make(classes=4)
    variables = augreg.into(checkpoint, model, reset_head=True)

    def outputs(variables: Any) -> Any:
        return [model.apply(variables, images, method=name) for name in ("trunk", "pre_logits")]

    ours = jax.jit(outputs)(variables)
    timm_peers.require_close(ours[0], tokens)
    timm_peers.require_close(ours[1], pooled)
    assert (checkpoint.classes, model.pool, model.gelu) == (0, "map", "tanh")
    assert set(checkpoint.ignored) == set(OTHERS)
    assert not jnp.any(jnp.asarray(variables["params"]["head"]["kernel"]))


def of_timm(path: pathlib.Path, images: Any, *, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and pooled tokens of timm's network, which reads the file itself."""
    torch = peers.torch()
    network = (
        peers.timm()
        .models.vision_transformer.VisionTransformer(
            img_size=SIDE,
            patch_size=PLAIN.patch,
            embed_dim=PLAIN.features,
            depth=PLAIN.depth,
            num_heads=PLAIN.heads,
            num_classes=0,
            global_pool="map",
            class_token=False,
            act_layer="gelu_tanh",
        )
        .eval()
    )
    network.load_pretrained(str(path), prefix)
    with torch.no_grad():
        tokens = network.forward_features(timm_peers.as_torch(images))
        return tokens.numpy(), network.forward_head(tokens).numpy()
