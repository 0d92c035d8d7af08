"""Renames the image towers of Hugging Face's transformers to timm's names and layout.

Neither transformers nor torch is needed. Names are those of files and those that transformers 5 has
in memory; it renames the arrays of older files when it reads them (`conversion_mapping.py`).

The arrays of each model type fit a network of timm, with `num_classes=0` unless there is a
classifier:

- vit, vit_mae, vit_msn: `VisionTransformer()`. The pooler of `ViTModel`, a dense layer with tanh
  behind [CLS], is left out, as timm leaves out pre_logits; so is the decoder of MAE.
- deit, the distilled one: `VisionTransformer(reg_tokens=1, no_embed_class=True)`, whose register is
  the distillation token, with its position added. Of two classifiers, that of [CLS] is kept.
- ijepa: `VisionTransformer(class_token=False, global_pool="avg", fc_norm=False)`.
- dinov2: `VisionTransformer(init_values=1)`; with SwiGLU, also `mlp_layer=SwiGLUPacked,
  act_layer=nn.SiLU` and twice the `mlp_ratio`. A classifier takes [CLS] and the mean of the patches
  and fits no network of timm.
- dinov2_with_registers: the same with `reg_tokens=4, no_embed_class=True`.
- dinov3_vit: `Eva`, as in `vit_small_patch16_dinov3_qkvb`; with gated MLPs, as in
  `vit_small_plus_patch16_dinov3_qkvb`; where queries and values have no biases, as in the networks
  without `_qkvb`.
- clip, metaclip_2: `VisionTransformer(pre_norm=True)`, without a classifier and without the
  projection to the space that both towers share.
- siglip, siglip2: `VisionTransformer(class_token=False, global_pool="map")`; with a classifier,
  `global_pool="avg", fc_norm=False`. siglip2 is the variant for any aspect ratio (NaFlex); SigLIP 2
  at a fixed resolution has the model type siglip.

Source: github.com/huggingface/transformers, `src/transformers/models/*/modeling_*.py`;
github.com/huggingface/pytorch-image-models, `checkpoint_filter_fn` in `vision_transformer.py` and
`eva.py`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from remem_jax.checks import SettingError, require
from remem_jax.weights import matching, transformers_facts
from remem_jax.weights.facts import Facts

_EMBEDDING = re.compile(
    r"(?P<root>(?:.+\.)?)embeddings\.patch_embeddings?\.(?:projection\.)?weight"
)
_BLOCK = re.compile(
    r"(?:encoder\.layers?|model\.layer|layers?)\.(?P<number>\d+)\.(?P<module>.+)"
    r"\.(?P<leaf>weight|bias|lambda1)"
)
# Names after the prefix of the tower, and timm's.
_TOKENS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.distillation_token": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
}
_MODULES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",
    "layernorm": "norm",
    "post_layernorm": "norm",
    "norm": "norm",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
_IN_BLOCKS = {
    "norm1": "norm1",
    "layernorm_before": "norm1",
    "layer_norm1": "norm1",
    "norm2": "norm2",
    "layernorm_after": "norm2",
    "layer_norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "self_attn.out_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "mlp.weights_in": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_out": "mlp.fc2",
    "mlp.down_proj": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
# Modules that timm joins, or that have a name of their own in `Eva`.
_PARTS = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
} | {f"{start}.{part}_proj": part for start in ("attention", "self_attn") for part in "qkv"}
_PROJECTIONS = re.compile(r"head\.attention\.in_proj_(weight|bias)")  # torch stacks all three.
_GATED = ("mlp.gate_proj.weight", "mlp.weights_in.weight")
# Number of tokens with positions where timm's network has positions of patches alone: DINOv2's
# registers have none, DeiT's distillation token has one.
_UNPLACED = {"dinov2_with_registers": 1, "deit": 2}
_CLASSIFIERS = ("classifier.", "cls_classifier.")
# What is no part of the image tower, or nothing uses: other towers and their projections, a
# decoder, the token of masked patches, and constants.
_IGNORED = re.compile(
    r"(?:text_model|visual_projection|text_projection|decoder|distillation_classifier)\."
    r"|logit_(?:scale|bias)$|(?:.+\.)?(?:embeddings\.(?:mask_token|position_ids)$|pooler\.)"
)


def is_transformers(names: Iterable[str]) -> bool:
    """Returns whether arrays of these names are a model of transformers with an image tower."""
    return any(_EMBEDDING.fullmatch(name) for name in names)


def to_timm(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], Facts, tuple[str, ...]]:
    """Converts the image tower of a model of transformers to timm's state dict.

    Where timm adds positions to patches alone, those of other tokens are added to the tokens.

    Args:
        arrays: Arrays by transformers' names.
        config: Contents of config.json.

    Returns:
        The arrays by timm's names (the module's docstring says of which network), the facts that
        they do not determine, and the names of the arrays that are no part of it.

    Raises:
        SettingError: If the model type or its activation is not supported, arrays have no place, or
            parts of an attention layer or an MLP are missing.
    """
    family = transformers_facts.family(config)
    is_eva = family == "dinov3_vit"
    roots = {match["root"] for name in arrays if (match := _EMBEDDING.fullmatch(name))}
    require(len(roots) == 1, "The file holds several image towers: save one of them alone.")
    (root,) = roots
    # What training code adds before the names of the tower and of a classifier beside it.
    outer = root[: root.rstrip(".").rfind(".") + 1]
    classifier = bool(transformers_facts.FAMILIES[family].classified) and any(
        name.removeprefix(outer).startswith(_CLASSIFIERS) for name in arrays
    )
    converted: dict[str, np.ndarray] = {}
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = {}  # By block and leaf.
    ignored, unknown = [], []
    for full, array in arrays.items():
        name = full.removeprefix(outer)
        inner = full.removeprefix(root) if full.startswith(root) else ""
        if _IGNORED.match(name) or _is_replaced(name, inner, family, classifier=classifier):
            ignored.append(full)
        elif classifier and name.startswith(_CLASSIFIERS):
            converted[f"head.{name.split('.', 1)[1]}"] = array
        elif place := _part(inner):
            number, part, leaf = place
            parts.setdefault((number, leaf), {})[part] = array
        elif timm := _renamed(inner, is_eva=is_eva):
            converted[timm] = array
        elif stacked := _PROJECTIONS.fullmatch(inner):
            query, *rest = np.split(array, 3)
            converted[f"attn_pool.q.{stacked[1]}"] = query
            converted[f"attn_pool.kv.{stacked[1]}"] = np.concatenate(rest)
        else:
            unknown.append(full)
    if unknown:
        raise SettingError(
            f"The model of transformers ({family}) has arrays without a place in a ViT: "
            f"{matching.listed(sorted(unknown))}; take another one."
        )
    converted |= _joined(parts, is_eva=is_eva)
    facts = transformers_facts.facts(
        config,
        classifier=classifier,
        gated=any(name.endswith(_GATED) for name in arrays),
        attention="attn_pool.latent" in converted,
    )
    shaped = {name: _shaped(name, array) for name, array in converted.items()}
    return _with_positions(shaped, _UNPLACED.get(family, 0)), facts, tuple(ignored)


def _is_replaced(name: str, inner: str, family: str, *, classifier: bool) -> bool:
    """Returns whether an array is a classifier without a place, or pooling that one replaces."""
    if family in ("clip", "metaclip_2"):
        return name.startswith("classifier.")
    return classifier and inner.startswith("head.")


def _part(inner: str) -> tuple[str, str, str] | None:
    """Returns block, part and leaf of an array that is joined with others."""
    match = _BLOCK.fullmatch(inner)
    part = _PARTS.get(match["module"], "") if match else ""
    return (match["number"], part, match["leaf"]) if match and part else None


def _renamed(inner: str, *, is_eva: bool) -> str:
    """Returns timm's name of an array that keeps its form; "" for an unknown one."""
    if inner in _TOKENS:
        return _TOKENS[inner]
    if inner == "head.probe":
        return "attn_pool.latent"
    if match := _BLOCK.fullmatch(inner):
        module = _IN_BLOCKS.get(match["module"], "")
        start = f"blocks.{match['number']}."
        if not module or (match["leaf"] == "lambda1") != module.startswith("ls"):
            return ""
        if module.startswith("ls"):
            return f"{start}gamma_{module[-1]}" if is_eva else f"{start}{module}.gamma"
        return f"{start}{module}.{match['leaf']}"
    module, _, leaf = inner.rpartition(".")
    return f"{_MODULES[module]}.{leaf}" if module in _MODULES else ""


def _joined(
    parts: Mapping[tuple[str, str], Mapping[str, np.ndarray]], *, is_eva: bool
) -> dict[str, np.ndarray]:
    """Returns timm's form of queries, keys and values, and of gated MLPs."""
    joined = {}
    for (number, leaf), here in parts.items():
        start = f"blocks.{number}."
        joined |= _attention(start, leaf, here, is_eva=is_eva)
        if "gate" in here:
            gate, up = here["gate"], _required(here, "up", start)
            if is_eva:
                joined |= {f"{start}mlp.fc1_g.{leaf}": gate, f"{start}mlp.fc1_x.{leaf}": up}
            else:
                joined[f"{start}mlp.fc1.{leaf}"] = np.concatenate([gate, up])
        elif "up" in here:
            joined[f"{start}mlp.fc1.{leaf}"] = here["up"]
    return joined


def _attention(
    start: str, leaf: str, here: Mapping[str, np.ndarray], *, is_eva: bool
) -> dict[str, np.ndarray]:
    """Returns the projections to queries, keys and values of one block, or their biases."""
    if leaf == "weight" or (not is_eva and here.keys() & set("qkv")):
        stack = [_required(here, part, start) for part in "qkv"]
        return {f"{start}attn.qkv.{leaf}": np.concatenate(stack)}
    # `Eva` has biases of queries and values alone.
    require(
        not np.any(here.get("k", 0)),
        f"The keys of block {start.split('.')[1]} have a bias, which timm's Eva has not: take a "
        "model without.",
    )
    return {f"{start}attn.{part}_bias": here[part] for part in "qv" if part in here}


def _required(here: Mapping[str, np.ndarray], part: str, start: str) -> np.ndarray:
    if part not in here:
        raise SettingError(
            f"The model of transformers lacks the projection {part!r} of {start.rstrip('.')}: the "
            "file is incomplete."
        )
    return here[part]


def _shaped(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array in timm's shape."""
    if name in ("cls_token", "pos_embed"):
        return array.reshape(1, -1, array.shape[-1])
    if name == "patch_embed.proj.weight" and array.ndim == 2:  # Of patches, channels last.
        side = math.isqrt(array.shape[1] // 3)
        require(
            3 * side**2 == array.shape[1],
            f"The patches of the model of transformers, of {array.shape[1]} numbers, are not square"
            " and of three channels: take another one.",
        )
        return array.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    return array


def _with_positions(arrays: dict[str, np.ndarray], tokens: int) -> dict[str, np.ndarray]:
    """Adds their positions to the first tokens, for timm's `no_embed_class`."""
    if not tokens or not arrays.keys() >= {"cls_token", "reg_token", "pos_embed"}:
        return arrays
    positions = arrays["pos_embed"]
    added = {
        "cls_token": arrays["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, tokens:],
    }
    if tokens == 2:
        added["reg_token"] = arrays["reg_token"] + positions[:, 1:2]
    return arrays | added
