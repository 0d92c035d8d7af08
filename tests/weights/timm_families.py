"""Small ViTs of timm's own modules, one for each family of pretrained ViTs."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from remem_jax.models.rotary import Rotary
from remem_jax.weights.facts import Facts
from tests.oracles import peers

CLASSES, DEPTH, HEADS, PATCH = 5, 3, 3, 4
SIDES = (20, 28)  # Of images; grids of 5 and 7.
_COMMON: dict[str, Any] = {"depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}


class Family(NamedTuple):
    """A family: timm's network, its options, and what its config.json says.

    Attributes:
        network: "VisionTransformer" or "Eva".
        options: Options of the network.
        facts: What its description says.
        features: Width.
    """

    network: str
    options: dict[str, Any]
    facts: Facts = Facts()
    features: int = 24

    def make(self, side: int) -> Any:
        """Makes timm's module, with parameters of about 1 for all layers."""
        library, torch = peers.timm(), peers.torch()
        network = {
            "VisionTransformer": library.models.vision_transformer.VisionTransformer,
            "Eva": library.models.eva.Eva,
        }[self.network]
        options = {name: _resolved(value) for name, value in self.options.items()}
        model = network(
            img_size=side, embed_dim=self.features, num_classes=CLASSES, **_COMMON, **options
        ).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = 0.3 * torch.randn(parameter.shape, generator=generator)
                is_scale = parameter.ndim == 1 and name.endswith(("weight", "gamma", "gamma_1"))
                parameter.copy_(drawn + is_scale)
        return model


class _Layer(NamedTuple):
    """A layer of timm that is imported when it is used."""

    name: str
    options: Mapping[str, Any] = {}


def _resolved(value: Any) -> Any:
    if not isinstance(value, _Layer):
        return value
    return functools.partial(getattr(peers.timm().layers, value.name), **value.options)


_NORM5 = _Layer("LayerNorm", {"eps": 1e-5})
_REGISTERS = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
_DINOV3 = {
    **{"global_pool": "avg", "use_fc_norm": False, "qkv_bias": False, "num_reg_tokens": 4},
    **{"init_values": 1e-5, "use_rot_pos_emb": True, "use_abs_pos_emb": False},
    **{"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True},
    "norm_layer": _NORM5,
}
_OF_DINOV3 = Facts(epsilon=1e-5, gelu="erf", pool="gap", rope=Rotary("centred", 100.0, half=True))
_INDEXED = Rotary("index", 10_000.0, reference=5)
_ROPED = {"use_rot_pos_emb": True, "ref_feat_shape": 5}
_ROPE_VIT = {
    **{"attn_type": "rope", "use_fc_norm": False, "global_pool": "token", "init_values": 1e-5},
    **{"use_rot_pos_emb": True, "rope_grid_indexing": "xy", "rope_temperature": 100.0},
}
_PE = {
    **{"attn_type": "rope", "global_pool": "map", "use_fc_norm": False},
    **{"use_pre_transformer_norm": True, "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 3.0},
    **{"use_rot_pos_emb": True, "ref_feat_shape": 5, "rope_grid_offset": 1.0},
    **{"rope_grid_indexing": "xy", "norm_layer": _NORM5},
}
FAMILIES = {
    "augreg": Family("VisionTransformer", {}),
    "deit3": Family("VisionTransformer", {"no_embed_class": True, "init_values": 1e-5}),
    "dinov2": Family("VisionTransformer", {"init_values": 1e-5}),
    "dinov2_reg": Family("VisionTransformer", _REGISTERS),
    "dinov2_giant": Family(
        "VisionTransformer",
        {**_REGISTERS, "mlp_layer": _Layer("SwiGLUPacked"), "mlp_ratio": 3.0, "act_layer": "silu"},
    ),
    "siglip": Family(
        "VisionTransformer",
        {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
        Facts(gelu="tanh"),
    ),
    "siglip_gap": Family(
        "VisionTransformer", {"global_pool": "avg", "class_token": False, "fc_norm": False}
    ),
    "clip": Family(
        "VisionTransformer",
        {"pre_norm": True, "norm_layer": _NORM5},
        Facts(epsilon=1e-5, gelu="erf"),
    ),
    "clip_quickgelu": Family(
        "VisionTransformer",
        {"pre_norm": True, "norm_layer": _NORM5, "act_layer": "quick_gelu"},
        Facts(epsilon=1e-5, gelu="quick"),
    ),
    "reg_gap": Family(
        "VisionTransformer",
        {**_REGISTERS, "class_token": False, "global_pool": "avg"},
    ),
    "embedded_registers": Family(
        "VisionTransformer",
        {"reg_tokens": 1, "class_token": False, "global_pool": "avg", "qkv_bias": False},
    ),
    "aimv2": Family(
        "VisionTransformer",
        {
            **{"class_token": False, "global_pool": "avg", "fc_norm": False, "qkv_bias": False},
            **{"proj_bias": False, "mlp_layer": _Layer("SwiGLU"), "act_layer": "silu"},
            "embed_norm_layer": _Layer("RmsNorm", {"eps": 1e-5}),
            "norm_layer": _Layer("RmsNorm", {"eps": 1e-5}),
        },
        Facts(epsilon=1e-5),
    ),
    "qk_norm": Family("VisionTransformer", {"qk_norm": True}),
    "beit3": Family(
        "VisionTransformer",
        {
            **{"scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg"},
            "norm_layer": _NORM5,
        },
        Facts(epsilon=1e-5),
    ),
    "radio": Family("VisionTransformer", {**_REGISTERS, "final_norm": False}),
    "dinov3": Family("Eva", _DINOV3, _OF_DINOV3),
    "dinov3_qkvb": Family("Eva", {**_DINOV3, "qkv_bias": True}, _OF_DINOV3),
    "dinov3_plus": Family("Eva", {**_DINOV3, "swiglu_mlp": True, "swiglu_align_to": 8}, _OF_DINOV3),
    "eva02_small": Family(
        "Eva", {**_ROPED, "swiglu_mlp": True, "mlp_ratio": 2.0}, Facts(rope=_INDEXED)
    ),
    "eva02": Family(
        "Eva",
        {**_ROPED, "swiglu_mlp": True, "mlp_ratio": 2.0, "qkv_fused": False, "scale_mlp": True},
        Facts(rope=_INDEXED),
    ),
    "eva02_clip": Family(
        "Eva",
        {
            **{**_ROPED, "swiglu_mlp": True, "mlp_ratio": 2.0, "qkv_fused": False},
            **{"scale_mlp": True, "scale_attn_inner": True, "global_pool": "token"},
        },
        Facts(rope=_INDEXED, pool="cls"),
    ),
    "rope_vit": Family(
        "Eva",
        {**_ROPE_VIT, "use_abs_pos_emb": False},
        Facts(rope=Rotary("index", column_first=True)),
    ),
    "rope_vit_ape": Family(
        "Eva",
        {**_ROPE_VIT, "no_embed_class": True},
        Facts(rope=Rotary("index", column_first=True)),
    ),
    "rope_vit_mixed": Family(
        "Eva",
        {**_ROPE_VIT, "use_abs_pos_emb": False, "rope_type": "mixed"},
        Facts(rope=Rotary("mixed", column_first=True)),
    ),
    "pe_core": Family(
        "Eva",
        _PE,
        Facts(
            epsilon=1e-5,
            gelu="erf",
            pool_heads=2,
            rope=Rotary("index", 10_000.0, column_first=True, offset=1.0, reference=5),
        ),
    ),
}


def state_of(model: Any) -> dict[str, np.ndarray]:
    """Returns a module's state dict as NumPy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
