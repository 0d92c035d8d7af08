"""timm's names and layouts of a ViT's parameters, to ours and back.

Neither timm nor torch is needed. timm has two networks, whose names differ in places: its
`VisionTransformer`, and its `Eva` for DINOv3, EVA-02 and others with rotary positions. `Layout` has
these differences. Hybrids differ from ours in the epsilons of their stems: 1e-5 rather than 1e-6 in
group norms, and 1e-8 added to a kernel's variance rather than 1e-5 to its standard deviation.

Source: github.com/huggingface/pytorch-image-models, `vision_transformer.py`, `eva.py` and
`vision_transformer_hybrid.py`.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from remem_jax.checks import SettingError, require
from remem_jax.models import vit
from remem_jax.weights import matching, names, timm_attention

Arrays = dict[str, np.ndarray]
_WHOLE = {
    "cls": "cls_token",
    "registers": "reg_token",
    names.POSITION: "pos_embed",
    "MAPHead_0/probe": "attn_pool.latent",
}
_BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MultiHeadDotProductAttention_1/query_norm": "attn.q_norm",
    "MultiHeadDotProductAttention_1/key_norm": "attn.k_norm",
    "MultiHeadDotProductAttention_1/norm": "attn.norm",
    "MlpBlock_3/gate": "mlp.gate",  # Until it is packed.
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/norm": "mlp.norm",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
_GATED = {"MlpBlock_3/gate": "mlp.fc1_g", "MlpBlock_3/Dense_0": "mlp.fc1_x"}
# Modules that some of timm's ViTs have and ours do not, and the end of the message.
_REFUSED = {
    "head_dist.": "is a distilled DeiT, with a second token and head: take a plain one",
    "dist_token": "is a distilled DeiT, with a second token and head: take a plain one",
    "blocks.0.attns.": "has parallel sub-blocks, so ReMem's Eq. 2 does not apply: take another one",
    "blocks.0.in_proj.": "has parallel sub-blocks, so ReMem's Eq. 2 does not apply: take another "
    "one",
    "blocks.0.attn.relative_position_bias_table": "has relative positions, which are not "
    "implemented: take another one",
    "blocks.0.attn.gate.": "has gated attention, which is not implemented: take another one",
    "blocks.0.attn.lambda_": "has differential attention, which is not implemented: take another "
    "one",
}


class Layout(NamedTuple):
    """Where the names of timm's networks differ for parameters that ours have under one name.

    Attributes:
        scales: Names of LayerScale's parameters: "ls" (`ls1.gamma`) or "gamma" (`gamma_1`).
        projections: "stacked": one kernel and one bias of query, key and value; "biases": one
            kernel, and biases of query and value; "separate": three kernels.
        gate: "packed": the gate and the hidden layer have one kernel; "split": two.
        has_cls_position: Whether [CLS] has a position, if it is the only token before the patches.
        has_positions: Whether there are learned positions.
    """

    scales: str = "ls"
    projections: str = "stacked"
    gate: str = "packed"
    has_cls_position: bool = True
    has_positions: bool = True


def layout_of(arrays: Mapping[str, np.ndarray]) -> Layout:
    """Returns the layout of a state dict."""
    stored = {name.removeprefix("blocks.0.") for name in arrays if name.startswith("blocks.0.")}
    projections = "stacked"
    if "attn.q_proj.weight" in stored:
        projections = "separate"
    elif "attn.q_bias" in stored:
        projections = "biases"
    positions = arrays.get("pos_embed")
    return Layout(
        "gamma" if "gamma_1" in stored else "ls",
        projections,
        "split" if "mlp.fc1_g.weight" in stored else "packed",
        positions is None or not _lacks_cls(positions, arrays, "cls_token", "reg_token"),
        positions is not None,
    )


def to_timm(
    params: Mapping[str, np.ndarray], *, grid: int = 0, layout: Layout | None = None
) -> Arrays:
    """Converts our arrays to timm's state dict.

    For a plain ViT, the model is timm's `VisionTransformer` with `global_pool="token"` for the pool
    "cls"; `global_pool="avg", class_token=False, fc_norm=False` for "gap"; `global_pool="map",
    class_token=False` for "map". A re-weighted or pruned ViT is folded first (`weights.folding`).

    Args:
        params: Flat parameters, by slash-joined name.
        grid: Tokens per side, for writing computed positions ("sincos2d"), because timm has only
            learned ones.
        layout: The names to use; None for those of `VisionTransformer`.

    Raises:
        SettingError: If timm has no such model. It dropped the layer `pre_logits`: its loaders
            skip the arrays silently, and the outputs differ.
    """
    if "pre_logits/kernel" in params:
        raise SettingError(
            "timm has no pre_logits layer; save this ViT as big_vision, or fine-tune it without "
            "(representation=0)."
        )
    params, layout = dict(params), layout or Layout()
    if names.POSITION not in params and layout.has_positions:
        require(grid > 0, "timm has no computed positions: give grid, the tokens on a side.")
        params[names.POSITION] = vit.sincos2d(grid, params[names.EMBEDDING].shape[-1])
    if not layout.has_cls_position:
        _add_position_to_cls(params)
    blocks = _numbers(params, r"Transformer/encoderblock_(\d+)/")
    units = _numbers(params, r"block(\d+)/unit(\d+)/")
    names_of = {ours: timm for ours, timm in _arrays(blocks, layout) if ours in params}
    converted = {timm: params.pop(ours) for ours, timm in names_of.items()}
    converted |= timm_attention.rotation_to_timm(params, blocks)
    for ours, timm in timm_attention.layers(blocks):
        converted |= timm_attention.to_timm(params, ours, timm, layout.projections)
    for ours, timm in _modules(blocks, units, layout):
        converted |= _module_to_timm(params, ours, timm)
    _pack_gates(converted, blocks)
    require(not params, f"timm's ViT has no parameter for {matching.listed(sorted(params))}.")
    return {name: np.asarray(array, order="C") for name, array in converted.items()}


def from_timm(arrays: Mapping[str, np.ndarray], *, heads: int = 0, pool_heads: int = 0) -> Arrays:
    """Converts timm's state dict to flat arrays under our names.

    If [CLS] is the only token before the patches and has no position (`no_embed_class`), its
    position is zeros. Missing arrays are not reported here, but by the comparison with a model.

    Args:
        arrays: Arrays by timm's names. `pre_logits.fc`, of releases up to 0.5, is `pre_logits`.
        heads: Number of attention heads, which the arrays do not determine; 0 for `usual_heads`.
        pool_heads: Number of heads of attention pooling; 0 for that of the blocks.

    Raises:
        SettingError: If the model is not supported, or an array has no plausible shape.
    """
    arrays = dict(arrays)
    _require_supported(arrays)
    layout, blocks = layout_of(arrays), _numbers(arrays, r"blocks\.(\d+)\.")
    units = _numbers(arrays, r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
    _unpack_gates(arrays, blocks)
    names_of = {timm: ours for ours, timm in _arrays(blocks, layout) if timm in arrays}
    converted = {ours: arrays.pop(timm) for timm, ours in names_of.items()}
    converted |= timm_attention.rotation_from_timm(arrays, blocks)
    for ours, timm in timm_attention.layers(blocks):
        number = (timm == "attn_pool." and pool_heads) or heads
        converted |= timm_attention.from_timm(arrays, ours, timm, number)
    for ours, timm in _modules(blocks, [(b + 1, u + 1) for b, u in units], layout):
        converted |= _module_from_timm(arrays, ours, timm)
    require(
        not arrays,
        "The timm checkpoint is not a supported ViT; there is no parameter for "
        f"{matching.listed(sorted(arrays))}.",
    )
    converted = _with_cls_position(converted)
    return {name: np.asarray(array, order="C") for name, array in converted.items()}


def _modules(
    blocks: list[tuple[int, ...]], units: list[tuple[int, ...]], layout: Layout
) -> Iterator[tuple[str, str]]:
    """Yields our name and timm's of each module with a weight, and perhaps a bias.

    Args:
        blocks: Numbers of the blocks.
        units: Stages and numbers of the units of a hybrid's stem, both from 1.
        layout: The names to use.
    """
    yield from (
        ("embedding", "patch_embed.proj"),
        ("embedding_norm", "patch_embed.norm"),
        ("Transformer/norm_pre", "norm_pre"),
        ("Transformer/encoder_norm", "norm"),
        ("fc_norm", "fc_norm"),
        ("pre_logits", "pre_logits.fc"),
        ("head", "head"),
        ("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
        ("MAPHead_0/MlpBlock_0/Dense_0", "attn_pool.mlp.fc1"),
        ("MAPHead_0/MlpBlock_0/Dense_1", "attn_pool.mlp.fc2"),
    )
    in_block = _BLOCK | (_GATED if layout.gate == "split" else {})
    for (i,) in blocks:
        for ours, timm in in_block.items():
            yield f"Transformer/encoderblock_{i}/{ours}", f"blocks.{i}.{timm}"
    root = "patch_embed.backbone.stem." if units else "patch_embed.backbone."
    yield from (("conv_root", f"{root}conv"), ("gn_root", f"{root}norm"))
    for stage, unit in units:
        ours = f"block{stage}/unit{unit}/"
        timm = f"patch_embed.backbone.stages.{stage - 1}.blocks.{unit - 1}."
        for kind, other in (("conv", "conv"), ("gn", "norm")):
            yield from ((f"{ours}{kind}{n}", f"{timm}{other}{n}") for n in (1, 2, 3))
            yield f"{ours}{kind}_proj", f"{timm}downsample.{other}"


def _arrays(blocks: list[tuple[int, ...]], layout: Layout) -> Iterator[tuple[str, str]]:
    """Yields our name and timm's of each array that is not a weight or bias of a module."""
    yield from _WHOLE.items()
    for (i,) in blocks:
        for n in (1, 2):
            timm = f"ls{n}.gamma" if layout.scales == "ls" else f"gamma_{n}"
            yield f"Transformer/encoderblock_{i}/gamma_{n}", f"blocks.{i}.{timm}"


def _module_to_timm(params: Arrays, ours: str, timm: str) -> Arrays:
    """Removes a module from our parameters, and returns it in timm's form."""
    converted: Arrays = {}
    for leaf, other in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
        if f"{ours}/{leaf}" in params:
            array = params.pop(f"{ours}/{leaf}")
            axes = (3, 2, 0, 1) if array.ndim == 4 else range(array.ndim)[::-1]
            converted[f"{timm}.{other}"] = array.transpose(axes)
    return converted


def _module_from_timm(arrays: Arrays, ours: str, timm: str) -> Arrays:
    """Removes a module from timm's arrays, and returns it in our form."""
    converted: Arrays = {}
    if f"{timm}.weight" in arrays:
        weight = arrays.pop(f"{timm}.weight")
        axes = (2, 3, 1, 0) if weight.ndim == 4 else range(weight.ndim)[::-1]
        leaf = "scale" if weight.ndim == 1 else "kernel"
        converted[f"{ours}/{leaf}"] = weight.transpose(axes)
    if f"{timm}.bias" in arrays:
        converted[f"{ours}/bias"] = arrays.pop(f"{timm}.bias")
    return converted


def _require_supported(arrays: Arrays) -> None:
    """Raises `SettingError` for modules that our network does not have."""
    for start, reason in _REFUSED.items():
        if any(name.startswith(start) for name in arrays):
            raise SettingError(f"The timm checkpoint {reason} ({start.rstrip('.')}).")
    require(
        "blocks.0.gamma_1" not in arrays or "blocks.0.gamma_2" in arrays,
        "The timm checkpoint has LayerScale for the attention alone (gamma_1), which is not "
        "implemented: take another one.",
    )


def _pack_gates(arrays: Arrays, blocks: list[tuple[int, ...]]) -> None:
    """Joins gates and hidden layers, in place, where they have no kernels of their own."""
    for (i,) in blocks:
        for leaf in ("weight", "bias"):
            gate = arrays.pop(f"blocks.{i}.mlp.gate.{leaf}", None)
            if gate is not None:
                fc1 = f"blocks.{i}.mlp.fc1.{leaf}"
                arrays[fc1] = np.concatenate([gate, arrays[fc1]])


def _unpack_gates(arrays: Arrays, blocks: list[tuple[int, ...]]) -> None:
    """Splits gates from hidden layers, in place, where one kernel has both."""
    for (i,) in blocks:
        fc1, fc2 = (arrays.get(f"blocks.{i}.mlp.{name}.weight") for name in ("fc1", "fc2"))
        if fc1 is None or fc2 is None or fc1.shape[0] != 2 * fc2.shape[-1]:
            continue
        for leaf in ("weight", "bias"):
            packed = arrays.pop(f"blocks.{i}.mlp.fc1.{leaf}", None)
            if packed is not None:
                gate, hidden = np.split(packed, 2)
                arrays[f"blocks.{i}.mlp.gate.{leaf}"] = gate
                arrays[f"blocks.{i}.mlp.fc1.{leaf}"] = hidden


def _with_cls_position(params: Arrays) -> Arrays:
    """Adds the position of [CLS] if it is alone before the patches and has none."""
    positions = params.get(names.POSITION)
    if positions is not None and _lacks_cls(positions, params, "cls", "registers"):
        zeros = np.zeros_like(positions[:, :1])
        params[names.POSITION] = np.concatenate([zeros, positions], axis=1)
    return params


def _lacks_cls(positions: np.ndarray, arrays: Collection[str], cls: str, registers: str) -> bool:
    """Returns whether [CLS] is the only token before the patches, and has no position."""
    is_alone = cls in arrays and registers not in arrays
    is_shaped = positions.ndim == 3 and positions.shape[1] > 0
    return is_alone and is_shaped and not _is_square(positions.shape[1] - 1)


def _add_position_to_cls(params: Arrays) -> None:
    """Adds the position of [CLS] to it, in place, which leaves the function unchanged."""
    if "cls" in params and "registers" not in params and names.POSITION in params:
        positions = params[names.POSITION]
        params["cls"] = params["cls"] + positions[:, :1]
        params[names.POSITION] = positions[:, 1:]


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _numbers(arrays: Collection[str], pattern: str) -> list[tuple[int, ...]]:
    """Returns the sorted numbers that a pattern matches at the start of names."""
    matches = filter(None, map(re.compile(pattern).match, arrays))
    return sorted({tuple(map(int, match.groups())) for match in matches})
