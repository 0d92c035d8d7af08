"""Image towers of transformers in timm's networks: the same tokens, pooled features and logits."""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.models.rotary import Rotary
from remem_jax.weights import timm, transformers_names
from remem_jax.weights.facts import Facts
from tests.oracles import peers

PATCH, FEATURES, HEADS, DEPTH = 4, 24, 3, 3
SIZES = (12, 20)  # Images of 3 x 3 and 5 x 5 patches.
POOLS = {"cls": "token", "gap": "avg", "map": "map", "cls_gap": ""}
SMALL = {
    "hidden_size": FEATURES,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
}
PLAIN = SMALL | {"intermediate_size": 2 * FEATURES}
DINO2 = SMALL | {"mlp_ratio": 2}
NO_CLASS = {"class_token": False, "fc_norm": False}
# The class in transformers, its settings, and those of timm's network.
CASES = {
    "vit": ("ViTModel", PLAIN, {}),
    "vit without biases": ("ViTModel", PLAIN | {"qkv_bias": False}, {"qkv_bias": False}),
    "vit mae": ("ViTMAEForPreTraining", PLAIN | {"mask_ratio": 0.0}, {}),
    "vit msn": ("ViTMSNModel", PLAIN, {}),
    "ijepa": ("IJepaModel", PLAIN, NO_CLASS),
    "deit": ("DeiTModel", PLAIN, {"reg_tokens": 1, "no_embed_class": True}),
    "dinov2": ("Dinov2Model", DINO2, {"init_values": 1}),
    "dinov2 giant": ("Dinov2Model", DINO2 | {"use_swiglu_ffn": True}, {"init_values": 1}),
    "dinov2 reg": (
        "Dinov2WithRegistersModel",
        DINO2,
        {"init_values": 1, "reg_tokens": 4, "no_embed_class": True},
    ),
    "dinov2 reg giant": (
        "Dinov2WithRegistersModel",
        DINO2 | {"use_swiglu_ffn": True},
        {"init_values": 1, "reg_tokens": 4, "no_embed_class": True},
    ),
    "dinov3": ("DINOv3ViTModel", PLAIN | {"num_register_tokens": 4}, {}),
    "dinov3 plus": (
        "DINOv3ViTModel",
        PLAIN | {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        {"swiglu_mlp": True, "swiglu_align_to": 8},
    ),
    "dinov3 7b": (
        "DINOv3ViTModel",
        PLAIN | {"num_register_tokens": 4, "query_bias": False, "value_bias": False},
        {"qkv_bias": False},
    ),
    "clip": ("CLIPModel", {"vision": PLAIN}, {"pre_norm": True}),
    "clip by erf": ("CLIPModel", {"vision": PLAIN | {"hidden_act": "gelu"}}, {"pre_norm": True}),
    "clip tower": ("CLIPVisionModel", PLAIN, {"pre_norm": True}),
    "metaclip 2": ("MetaClip2Model", {"vision": PLAIN}, {"pre_norm": True}),
    "siglip": ("SiglipModel", {"vision": PLAIN}, NO_CLASS),
    "siglip tower": ("SiglipVisionModel", PLAIN, NO_CLASS),
    "siglip without head": ("SiglipVisionModel", PLAIN | {"vision_use_head": False}, NO_CLASS),
}
CLASSIFIERS = {
    "vit": ("ViTForImageClassification", PLAIN, {}),
    "ijepa": ("IJepaForImageClassification", PLAIN, NO_CLASS),
    "deit": ("DeiTForImageClassification", PLAIN, {"reg_tokens": 1, "no_embed_class": True}),
    "siglip": ("SiglipForImageClassification", {"vision": PLAIN}, NO_CLASS),
}


def saved(model: Any, folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and the config.json that transformers writes, as in its repositories."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return timm.read(folder / "model.safetensors"), config


def timm_network(arrays: Mapping[str, np.ndarray], facts: Facts, size: int, **settings: Any) -> Any:
    """Returns timm's network with these arrays, which must be those that it has."""
    torch, models = peers.torch(), peers.timm().models
    packed = "blocks.0.mlp.fc1.weight" in arrays and not facts.gelu
    common = {
        "img_size": size,
        "patch_size": PATCH,
        "embed_dim": FEATURES,
        "depth": DEPTH,
        "num_heads": facts.heads,
        "mlp_ratio": 2,
        "num_classes": len(arrays["head.bias"]) if "head.bias" in arrays else 0,
        "global_pool": POOLS[facts.pool],
        "norm_layer": functools.partial(torch.nn.LayerNorm, eps=facts.epsilon),
    }
    if facts.rope:
        assert facts.rope == Rotary("centred", base=100.0, half=True)
        network = models.eva.Eva(
            **common
            | {"num_reg_tokens": 4, "init_values": 1, "use_abs_pos_emb": False}
            | {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True}
            | {"rope_temperature": facts.rope.base, "use_fc_norm": False}
            | settings
        )
    else:
        erf, swish = torch.nn.GELU, torch.nn.SiLU
        acts = {"erf": erf, "tanh": "gelu_tanh", "quick": "quick_gelu", "": swish}
        settings = {"act_layer": acts[facts.gelu], **settings}
        if packed:
            hidden = len(arrays["blocks.0.mlp.fc1.weight"])
            settings |= {
                "mlp_layer": peers.timm().layers.SwiGLUPacked,
                "mlp_ratio": hidden / FEATURES,
            }
        network = models.vision_transformer.VisionTransformer(**common | settings)
    tensors = {name: torch.tensor(np.ascontiguousarray(a)) for name, a in arrays.items()}
    network.load_state_dict(tensors, strict=True)
    return network.eval()


def images(size: int) -> Any:
    """Returns two random images, channels first."""
    return peers.torch().randn(2, 3, size, size, generator=peers.torch().Generator().manual_seed(1))


def expected_features(model: Any, size: int) -> tuple[Any, Any]:
    """Returns the tokens and the pooled features of an image tower of transformers."""
    name = type(model).__name__
    tower = getattr(model, "vision_model", getattr(model, "vit", model))
    if name == "ViTMAEForPreTraining":  # It masks nothing, but shuffles the patches by this noise.
        noise = peers.torch().arange(float((size // PATCH) ** 2)).tile(2, 1)
        outputs = tower(images(size), noise=noise)
    else:
        outputs = tower(images(size))
    tokens = outputs.last_hidden_state
    if "CLIP" in name or "Clip" in name:
        tokens = tower.post_layernorm(tokens)  # It normalises [CLS] alone.
    if name == "IJepaModel" or getattr(tower, "use_head", True) is False:
        return tokens, tokens.mean(1)
    has_pooler = name.startswith(("Dino", "DINO", "CLIP", "MetaClip", "Siglip"))
    return tokens, outputs.pooler_output if has_pooler else tokens[:, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_a_tower_has_the_same_features_in_timm(
    case: str, size: int, tmp_path: pathlib.Path
) -> None:
    name, settings, others = CASES[case]
    sized = {"image_size": size}
    settings = {"vision": settings["vision"] | sized} if "vision" in settings else settings | sized
    model = peers.transformers(name, **settings)

    arrays, facts, ignored = transformers_names.to_timm(*saved(model, tmp_path))

    network = timm_network(arrays, facts, size, **others)
    with peers.torch().no_grad():
        tokens, pooled = expected_features(model, size)
        actual = network.forward_features(images(size))
        np.testing.assert_allclose(actual, tokens, atol=1e-4)
        np.testing.assert_allclose(network.forward_head(actual, pre_logits=True), pooled, atol=1e-4)
    allowed = ("text_", "logit_", "visual_", "decoder", "pooler", "embeddings.mask_token")
    assert all(any(word in name for word in allowed) for name in ignored)
    assert facts.pool_heads == (HEADS if facts.pool == "map" else 0)


@pytest.mark.parametrize("case", CASES)
def test_names_in_memory_are_those_of_files(case: str, tmp_path: pathlib.Path) -> None:
    name, settings, _ = CASES[case]
    model = peers.transformers(name, **settings)
    arrays, config = saved(model, tmp_path)
    in_memory = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    assert transformers_names.is_transformers(arrays)
    assert transformers_names.is_transformers(in_memory)

    expected, facts, _ = transformers_names.to_timm(arrays, config)
    actual, same, _ = transformers_names.to_timm(in_memory, config)

    assert same == facts
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key])


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_classifier_has_the_same_logits_in_timm(case: str, tmp_path: pathlib.Path) -> None:
    name, settings, others = CLASSIFIERS[case]
    sized = {"image_size": 12}
    settings = {"vision": settings["vision"] | sized} if "vision" in settings else settings | sized
    model = peers.transformers(name, **settings, num_labels=5)

    arrays, facts, _ = transformers_names.to_timm(*saved(model, tmp_path))

    network = timm_network(arrays, facts, 12, **others)
    with peers.torch().no_grad():
        expected = model(images(12)).logits
        np.testing.assert_allclose(network(images(12)), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_the_classifier_of_dinov2_takes_class_and_mean(name: str, tmp_path: pathlib.Path) -> None:
    model = peers.transformers(
        f"{name}ForImageClassification", **DINO2, image_size=12, num_labels=5
    )

    arrays, facts, _ = transformers_names.to_timm(*saved(model, tmp_path))

    assert facts.pool == "cls_gap"
    with peers.torch().no_grad():
        tokens = model.base_model(images(12)).last_hidden_state.numpy()
        expected = model(images(12)).logits
    patches = tokens[:, -9:].mean(1)
    features = np.concatenate([tokens[:, 0], patches], axis=1)
    actual = features @ arrays["head.weight"].T + arrays["head.bias"]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_patches_of_any_aspect_ratio_are_a_convolution(tmp_path: pathlib.Path) -> None:
    settings = {key: value for key, value in PLAIN.items() if key != "image_size"}
    model = peers.transformers("Siglip2VisionModel", **settings, num_patches=9)
    batch = images(12)
    patches = batch.reshape(2, 3, 3, PATCH, 3, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(2, 9, -1)
    torch = peers.torch()

    arrays, facts, _ = transformers_names.to_timm(*saved(model, tmp_path))

    network = timm_network(arrays, facts, 12, **NO_CLASS)
    with torch.no_grad():
        outputs = model(patches, torch.ones(2, 9), torch.tensor([[3, 3]] * 2))
        actual = network.forward_features(batch)
        np.testing.assert_allclose(actual, outputs.last_hidden_state, atol=1e-4)
        pooled = network.forward_head(actual, pre_logits=True)
        np.testing.assert_allclose(pooled, outputs.pooler_output, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "ViT",
        "DeiT",
        "ViTMAE",
        "ViTMSN",
        "IJepa",
        "Dinov2",
        "Dinov2WithRegisters",
        "DINOv3ViT",
        "CLIPVision",
        "MetaClip2Vision",
        "SiglipVision",
        "Siglip2Vision",
    ],
)
def test_what_a_config_omits_is_what_transformers_assumes(name: str) -> None:
    config = peers.transformers_config(f"{name}Config")

    facts = transformers_names.transformers_facts.facts(
        {"model_type": config.model_type}, classifier=False, gated=False, attention=True
    )

    gelus = {"gelu": "erf", "quick_gelu": "quick", "gelu_pytorch_tanh": "tanh"}
    assert facts.heads == config.num_attention_heads
    assert facts.gelu == gelus[config.hidden_act]
    assert facts.epsilon == config.layer_norm_eps
    assert facts.rope is None or facts.rope.base == config.rope_theta


def vit(**more: np.ndarray) -> dict[str, np.ndarray]:
    """Returns some arrays of a ViT under transformers' names, and others."""
    root = "vit.encoder.layer.0."
    kernel = np.ones((4, 4), np.float32)
    return {
        "vit.embeddings.patch_embeddings.projection.weight": np.ones((4, 3, 2, 2), np.float32),
        f"{root}attention.attention.query.weight": kernel,
        f"{root}attention.attention.key.weight": 2 * kernel,
        f"{root}attention.attention.value.weight": 3 * kernel,
        **more,
    }


def test_the_text_tower_is_ignored() -> None:
    names = ("text_model.final_layer_norm.weight", "logit_scale", "visual_projection.weight")
    others = {name: np.ones(4, np.float32) for name in names}

    arrays, _, ignored = transformers_names.to_timm(vit(**others), {"model_type": "clip"})

    assert arrays.keys() == {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}
    assert set(ignored) == set(names)


def test_prefixes_of_training_code_are_removed() -> None:
    head = {"classifier.weight": np.ones((2, 4)), "classifier.bias": np.ones(2)}
    expected, facts, _ = transformers_names.to_timm(vit(**head), {"model_type": "vit"})
    wrapped = {f"module.{name}": array for name, array in vit(**head).items()}

    arrays, same, ignored = transformers_names.to_timm(wrapped, {"model_type": "vit"})

    assert arrays.keys() == expected.keys() >= {"head.weight", "head.bias"}
    assert same == facts
    assert not ignored


def test_settings_of_old_clips_are_those_of_vision_config_dict() -> None:
    config = {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": 12},
        "vision_config_dict": {"num_attention_heads": 16},
    }

    _, facts, _ = transformers_names.to_timm(vit(), config)

    assert facts == Facts(heads=16, gelu="quick", epsilon=1e-5, pool="cls")


def test_an_unknown_array_is_named() -> None:
    other = {"vit.encoder.layer.0.attention.attention.relative": np.ones(3)}

    with pytest.raises(SettingError, match=r"without a place in a ViT: vit\.encoder.*relative"):
        transformers_names.to_timm(vit(**other), {"model_type": "vit"})


def test_an_array_outside_the_tower_has_no_place() -> None:
    with pytest.raises(SettingError, match=r"without a place in a ViT: layernorm\.weight"):
        transformers_names.to_timm(vit(**{"layernorm.weight": np.ones(4)}), {"model_type": "vit"})


def test_an_incomplete_attention_is_named() -> None:
    arrays = vit()
    del arrays["vit.encoder.layer.0.attention.attention.key.weight"]

    with pytest.raises(SettingError, match=r"lacks the projection 'k' of blocks\.0"):
        transformers_names.to_timm(arrays, {"model_type": "vit"})


def test_a_model_type_that_is_not_supported_is_named() -> None:
    with pytest.raises(SettingError, match=r"model type beit .* of clip, deit, dinov2, "):
        transformers_names.to_timm(vit(), {"model_type": "beit"})


def test_a_file_without_its_config_is_refused() -> None:
    with pytest.raises(SettingError, match=r"give the config\.json"):
        transformers_names.to_timm(vit(), {})


@pytest.mark.parametrize(
    ("settings", "gated"), [({"hidden_act": "relu"}, False), ({"hidden_act": "gelu"}, True)]
)
def test_another_activation_is_refused(settings: dict[str, str], gated: bool) -> None:
    config = {"model_type": "dinov3_vit", **settings}

    with pytest.raises(SettingError, match=f"hidden_act is {settings['hidden_act']}"):
        transformers_names.transformers_facts.facts(
            config, classifier=False, gated=gated, attention=False
        )


def test_a_damaged_number_of_heads_is_refused() -> None:
    with pytest.raises(SettingError, match="no number of attention heads, but 'many'"):
        transformers_names.to_timm(vit(), {"model_type": "vit", "num_attention_heads": "many"})


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_bias_of_the_keys_of_dinov3_must_be_zero(value: float) -> None:
    start = "layer.0.attention."
    kernel, bias = np.ones((4, 4), np.float32), np.ones(4, np.float32)
    arrays = {"embeddings.patch_embeddings.weight": np.ones((4, 3, 2, 2), np.float32)}
    arrays |= {f"{start}{part}_proj.weight": kernel for part in "qkv"}
    arrays |= {f"{start}{part}_proj.bias": bias * value for part in "qkv"}

    if value:
        with pytest.raises(SettingError, match="keys of block 0 have a bias"):
            transformers_names.to_timm(arrays, {"model_type": "dinov3_vit"})
        return
    converted, _, _ = transformers_names.to_timm(arrays, {"model_type": "dinov3_vit"})
    assert {name for name in converted if "bias" in name} == {
        "blocks.0.attn.q_bias",
        "blocks.0.attn.v_bias",
    }


def test_names_of_timm_are_not_those_of_transformers() -> None:
    names = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "text.embeddings.weight")

    assert not transformers_names.is_transformers(names)
