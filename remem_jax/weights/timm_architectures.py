"""What timm's name of a ViT says about it, beyond its arrays.

The names are those of `timm.create_model`, such as "vit_small_patch16_dinov3". Each rule has a
pattern; the first rule whose pattern is in a name gives a fact. Tests compare all facts with timm's
networks.

Source: github.com/huggingface/pytorch-image-models, `vision_transformer.py` and `eva.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from remem_jax.checks import require
from remem_jax.models.rotary import Rotary
from remem_jax.weights.facts import UNKNOWN, Facts

T = TypeVar("T")
Rules = Sequence[tuple[str, T]]
_POOLS = {"token": "cls", "avg": "gap", "map": "map"}
_NAME = re.compile(r"(aimv2|beit3|deit|eva|flexivit|test_vit|vit)[a-z0-9_]*")

# Their files have the names of a pre-norm ViT.
_POST_NORM = re.compile(r"_rpn_|eva02_enormous")
# Where it is not the usual one for the width, see `timm_attention.usual_heads`.
_HEADS: Rules[int] = (
    (r"aimv2_large", 8),
    (r"aimv2_huge", 12),
    (r"aimv2_1b", 16),
    (r"aimv2_3b", 24),
    (r"giantopt|pe_\w+_gigantic", 16),
    (r"vit_7b", 32),
    (r"huge_plus", 20),
    (r"base_patch16_gap", 16),
    (r"test_vit4", 3),
    (r"test_vit3", 3),
    (r"test_vit", 2),
)
_GELUS: Rules[str] = (
    (r"quickgelu", "quick"),
    (r"large_patch16_siglip\w*_512|(so400m_patch16|giantopt_patch16|base_patch32)_siglip", "tanh"),
)
_EPSILONS: Rules[float] = (
    (r"^eva", 1e-6),
    (r"_clip_|aimv2|beit3|dinov3|lingbot|_pe_", 1e-5),
)
_POOL: Rules[str] = ((r"dinov3|_pe_lang|_pe_spatial", "gap"),)
_POOL_HEADS: Rules[int] = ((r"_pe_core", 8),)
_ROTATIONS: Rules[Rotary] = (
    (r"dinov3|lingbot|sapiens2", Rotary("centred", half=True)),
    (r"rope_mixed", Rotary("mixed", 10.0, column_first=True)),
    (r"rope_reg|^eva02", Rotary("index", 10_000.0, reference=16)),
    (r"_rope_", Rotary("index", column_first=True)),
    # Indices start at 1 where [CLS] is 0.
    (r"_pe_\w+_gigantic", Rotary("index", 10_000.0, column_first=True, reference=32)),
    (r"_pe_", Rotary("index", 10_000.0, column_first=True, offset=1.0)),
)


def name_of(config: Mapping[str, Any], stem: str) -> str:
    """Returns timm's name of a network, from its config.json or else the name of its file.

    Args:
        config: Contents of the config.json; may be empty.
        stem: Name of the file, without its suffix; what follows a dot names the weights.

    Returns:
        The name; "" if neither has one.
    """
    name = str(config.get("architecture") or "")
    match = _NAME.fullmatch(stem.partition(".")[0])
    return name or (match[0] if match and "patch" in match[0] else "")


def facts(name: str, config: Mapping[str, Any] | None = None) -> Facts:
    """Returns what is known about a network.

    Args:
        name: timm's name; "" for an unknown one.
        config: Contents of the config.json that timm writes; its pooling replaces the usual one.

    Raises:
        SettingError: If the network is not supported, and its arrays do not show it.
    """
    if not name:
        return UNKNOWN
    require(
        not _POST_NORM.search(name),
        f"{name} has norms after its sub-blocks, so ReMem's Eq. 2 does not apply: set "
        "config.teacher.init to a ViT with norms before them.",
    )
    rope = _first(_ROTATIONS, name, None)
    size = re.search(r"patch(\d+)_(\d+)$", name)
    if "_pe_" in name and rope and not rope.reference and size:
        rope = rope._replace(reference=int(size[2]) // int(size[1]))
    stored = _POOLS.get(str((config or {}).get("global_pool", "")), "")
    return Facts(
        heads=_first(_HEADS, name, 0),
        gelu=_first(_GELUS, name, "erf"),
        epsilon=_first(_EPSILONS, name, 1e-6),
        pool=stored or _first(_POOL, name, ""),
        rope=rope,
        pool_heads=_first(_POOL_HEADS, name, 0),
        architecture=name,
    )


def _first(rules: Rules[Any], name: str, other: T) -> Any | T:
    return next((fact for pattern, fact in rules if re.search(pattern, name)), other)
