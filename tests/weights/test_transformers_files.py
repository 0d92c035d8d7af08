"""Files that transformers writes, read as ViTs of ours: the same tokens and logits."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.weights import augreg, timm, timm_names, transformers_names
from tests.oracles import peers

SIDE, PATCH = 12, 4
PLAIN = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "patch_size": PATCH,
    "image_size": SIDE,
}
DINO2 = {name: value for name, value in PLAIN.items() if name != "intermediate_size"}
REGISTERS = PLAIN | {"num_register_tokens": 4}
# The class in transformers, and its settings.
TOWERS = {
    "vit": ("ViTModel", PLAIN),
    "deit": ("DeiTModel", PLAIN),
    "ijepa": ("IJepaModel", PLAIN),
    "dinov2": ("Dinov2Model", DINO2),
    "dinov2 giant": ("Dinov2Model", DINO2 | {"use_swiglu_ffn": True}),
    "dinov2 reg": ("Dinov2WithRegistersModel", DINO2),
    "dinov3": ("DINOv3ViTModel", REGISTERS),
    "dinov3 plus": (
        "DINOv3ViTModel",
        REGISTERS | {"use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "clip": ("CLIPModel", {"vision": PLAIN}),
    "siglip 2": ("SiglipModel", {"vision": PLAIN}),
}
CLASSIFIERS = {
    "vit": ("ViTForImageClassification", PLAIN),
    "dinov2": ("Dinov2ForImageClassification", DINO2),
    "dinov2 reg": ("Dinov2WithRegistersForImageClassification", DINO2),
    "siglip": ("SiglipForImageClassification", {"vision": PLAIN}),
}


def images(side: int) -> np.ndarray:
    """Returns two random images, channels last."""
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)


def of_transformers(images: np.ndarray) -> Any:
    return peers.torch().from_numpy(images.transpose(0, 3, 1, 2).copy())


def expected_tokens(model: Any, batch: np.ndarray) -> np.ndarray:
    """Returns the tokens after the last norm."""
    tower = getattr(model, "vision_model", model)
    with peers.torch().no_grad():
        tokens = tower(of_transformers(batch)).last_hidden_state
        if type(model).__name__ == "CLIPModel":  # It normalises [CLS] alone.
            tokens = tower.post_layernorm(tokens)
    return tokens.numpy()


def tokens_of(model: vit.VisionTransformer, variables: Any, batch: np.ndarray) -> np.ndarray:
    """Returns the tokens of a ViT of ours after its last norm."""
    return np.asarray(model.apply(variables, batch, method=model.trunk))


@pytest.mark.parametrize("case", TOWERS)
def test_a_tower_has_the_same_tokens(case: str, tmp_path: pathlib.Path) -> None:
    name, settings = TOWERS[case]
    theirs = peers.transformers(name, **settings)
    theirs.save_pretrained(tmp_path)
    batch = images(SIDE)

    model, variables = augreg.make(tmp_path / "model.safetensors", classes=5)

    expected = expected_tokens(theirs, batch)
    actual = tokens_of(model, variables, batch)
    assert model.prefix == expected.shape[1] - (SIDE // PATCH) ** 2
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_rotary_positions_fit_other_images(tmp_path: pathlib.Path) -> None:
    theirs = peers.transformers("DINOv3ViTModel", **REGISTERS)
    theirs.save_pretrained(tmp_path)
    batch = images(20)

    model, variables = augreg.make(tmp_path / "model.safetensors", classes=5, image_size=20)

    actual = tokens_of(model, variables, batch)
    np.testing.assert_allclose(actual, expected_tokens(theirs, batch), atol=1e-4)


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_classifier_has_the_same_logits(case: str, tmp_path: pathlib.Path) -> None:
    name, settings = CLASSIFIERS[case]
    theirs = peers.transformers(name, **settings, num_labels=5)
    theirs.save_pretrained(tmp_path)
    batch = images(SIDE)

    model, variables = augreg.make(tmp_path / "model.safetensors")

    with peers.torch().no_grad():
        expected = theirs(of_transformers(batch)).logits
    actual = models.evaluation_apply(model)(variables, jnp.asarray(batch))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_the_pooled_features_of_siglip_are_the_input_of_a_head(tmp_path: pathlib.Path) -> None:
    theirs = peers.transformers("SiglipVisionModel", **PLAIN)
    theirs.save_pretrained(tmp_path)
    batch = images(SIDE)
    model, variables = augreg.make(tmp_path / "model.safetensors", classes=24)
    identity = {"kernel": np.eye(24, dtype=np.float32), "bias": np.zeros(24, np.float32)}

    actual = np.asarray(model.apply({"params": {**variables["params"], "head": identity}}, batch))

    with peers.torch().no_grad():
        expected = theirs(of_transformers(batch)).pooler_output
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_file_without_its_config_is_refused(tmp_path: pathlib.Path) -> None:
    peers.transformers("ViTModel", **PLAIN).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()

    with pytest.raises(SettingError, match=r"give the config\.json beside them"):
        augreg.read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("side", [8, 20])
def test_positions_are_resized_as_dinov2_resizes_them(side: int, tmp_path: pathlib.Path) -> None:
    theirs = peers.transformers("Dinov2WithRegistersModel", **DINO2)
    theirs.save_pretrained(tmp_path)
    batch = images(side)

    path = tmp_path / "model.safetensors"
    model, variables = augreg.make(path, classes=5, image_size=side, resize="dinov2")

    actual = tokens_of(model, variables, batch)
    np.testing.assert_allclose(actual, expected_tokens(theirs, batch), atol=1e-4)


@pytest.mark.parametrize("case", TOWERS)
def test_a_teacher_is_saved_under_timms_names(case: str, tmp_path: pathlib.Path) -> None:
    name, settings = TOWERS[case]
    peers.transformers(name, **settings).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    config = json.loads((tmp_path / "config.json").read_text())
    checkpoint = augreg.read(path, config=config)

    saved = timm_names.to_timm(checkpoint.arrays, layout=checkpoint.layout)

    expected, _, _ = transformers_names.to_timm(timm.read(path), config)
    assert saved.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(saved[key], expected[key])
