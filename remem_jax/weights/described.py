"""Infers a ViT's size and options from its arrays, and from facts that arrays do not determine."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.models.rotary import Rotary
from remem_jax.weights import matching, names
from remem_jax.weights.facts import Facts

Arrays = Mapping[str, np.ndarray]
_BLOCK = "Transformer/encoderblock_0/"
_ATTENTION, _MLP = f"{_BLOCK}MultiHeadDotProductAttention_1/", f"{_BLOCK}MlpBlock_3/"
_POOL_HIDDEN = "MAPHead_0/MlpBlock_0/Dense_0/kernel"
_POOL_QUERY = "MAPHead_0/MultiHeadDotProductAttention_0/query/kernel"
# The options of a plain ViT, which are not listed among those of a checkpoint.
PLAIN: Mapping[str, Any] = {
    name: vit.VisionTransformer.__dataclass_fields__[name].default for name in vit.ARCHITECTURE
}
# The options that the networks of vit_jax and big_vision may have.
OF_NPZ = frozenset({"pool", "positions", "representation", "gelu"})
_DESCRIBE = (
    "put the config.json of its repository beside it, or give the file the name that timm gives "
    "the network, such as vit_base_patch16_clip_224.safetensors"
)


def size(arrays: Arrays, source: str) -> vit.Size:
    """Infers the size of a ViT.

    Raises:
        SettingError: If an array that determines it is missing or has no plausible shape.
    """
    query = shape(arrays, f"{_ATTENTION}query/kernel", 3, source)
    patch = shape(arrays, names.EMBEDDING, 4, source)
    hidden = shape(arrays, f"{_MLP}Dense_0/kernel", 2, source)[1]
    depth = len({name.split("/")[1] for name in arrays if "/encoderblock_" in name})
    mlp = 0 if hidden == 4 * query[0] else hidden
    return vit.Size(patch[0], query[0], depth, query[1], mlp, _stem(arrays))


def options(
    arrays: Arrays, size: vit.Size, *, form: str, source: str, facts: Facts
) -> dict[str, Any]:
    """Infers the fields of `vit.VisionTransformer` that determine the function of the arrays.

    Args:
        arrays: Arrays under our names.
        size: See `size`.
        form: "vit_jax", "big_vision" or "timm".
        source: Path of the file, for errors.
        facts: What a description says.

    Returns:
        `pool`, `positions` and `gelu`; the others as far as they are not those of a plain ViT.

    Raises:
        SettingError: If neither arrays nor facts determine the rotary positions, or the GELU of a
            ViT with a norm before its blocks, as CLIP has it.
    """
    pool = _pool(arrays, facts)
    found = _tokens(arrays, pool) | _blocks(arrays)
    found |= {
        "epsilon": facts.epsilon or PLAIN["epsilon"],
        "norm_pre": "Transformer/norm_pre/scale" in arrays,
        "norm_last": "Transformer/encoder_norm/scale" in arrays,
        "fc_norm": "fc_norm/scale" in arrays,
        "rope": _rotation(arrays, form, source, facts),
    }
    if form == "timm" and found["norm_pre"] and not facts.gelu:
        raise SettingError(
            f"{source} has a norm before its blocks, as CLIP has it, and does not record which "
            f"GELU it was trained with: {_DESCRIBE}."
        )
    if matching.PRE_LOGITS[0] in arrays:
        found["representation"] = shape(arrays, matching.PRE_LOGITS[0], 2, source)[1]
    if _POOL_QUERY in arrays:
        found |= _attention_pool(arrays, size, source)
    kept = {name: value for name, value in found.items() if value != PLAIN[name]}
    return kept | {
        "pool": pool,
        "positions": _positions(arrays, form),
        "gelu": facts.gelu or ("erf" if form == "timm" else "tanh"),
    }


def can_pool(pool: str, arrays: Arrays) -> bool:
    """Returns whether the arrays of a ViT have what a pool needs."""
    needs = {"cls": "cls", "cls_gap": "cls", "map": "MAPHead_0/probe"}
    # A norm of the pooled tokens would be of one of the two.
    is_too_wide = pool == "cls_gap" and "fc_norm/scale" in arrays
    return pool in vit.POOLS and needs.get(pool, names.EMBEDDING) in arrays and not is_too_wide


def grid(arrays: Arrays, options: Mapping[str, Any]) -> int:
    """Returns the side of the grid of the learned positions."""
    first = _prefix(arrays) if options.get("prefix_positions", True) else 0
    return math.isqrt(arrays[names.POSITION].shape[1] - first)


def shape(arrays: Arrays, name: str, axes: int, source: str) -> tuple[int, ...]:
    """Returns the shape of an array that determines the model.

    Raises:
        SettingError: If there is no such array, or its shape is not plausible.
    """
    if name not in arrays:
        raise SettingError(f"{source} is not a checkpoint of a ViT: missing: {name}.")
    found = arrays[name].shape
    if len(found) != axes or not all(found):
        raise SettingError(f"{source} is not a checkpoint of a ViT: mis-shaped: {name} {found}.")
    return found


def _tokens(arrays: Arrays, pool: str) -> dict[str, Any]:
    """Returns the options of the tokens."""
    found: dict[str, Any] = {
        "patch_bias": "embedding/bias" in arrays,
        "patch_norm": "embedding_norm/scale" in arrays,
        "registers": _registers(arrays),
    }
    if "cls" in arrays and pool not in ("cls", "cls_gap"):
        found["class_token"] = True
    positions = arrays.get(names.POSITION)
    if positions is not None and positions.ndim == 3 and "registers" in arrays:
        # Where both are possible, which is so on tiny grids alone, registers have no positions.
        found["prefix_positions"] = not _is_square(positions.shape[1])
    return found


def _blocks(arrays: Arrays) -> dict[str, Any]:
    """Returns the options of the blocks."""
    qkv_bias = [
        name[0] for name in ("query", "key", "value") if f"{_ATTENTION}{name}/bias" in arrays
    ]
    return {
        "norm": "layer" if f"{_BLOCK}LayerNorm_0/bias" in arrays else "rms",
        "layer_scale": f"{_BLOCK}gamma_1" in arrays,
        "qkv_bias": "".join(qkv_bias),
        "has_bias": f"{_ATTENTION}out/bias" in arrays,
        "qk_norm": f"{_ATTENTION}query_norm/scale" in arrays,
        "attention_norm": f"{_ATTENTION}norm/scale" in arrays,
        "mlp_norm": f"{_MLP}norm/scale" in arrays,
        "gated": f"{_MLP}gate/kernel" in arrays,
    }


def _pool(arrays: Arrays, facts: Facts) -> str:
    if "MAPHead_0/probe" in arrays:
        return "map"
    if facts.pool and can_pool(facts.pool, arrays):
        return facts.pool
    return "cls" if "cls" in arrays and "fc_norm/scale" not in arrays else "gap"


def _attention_pool(arrays: Arrays, size: vit.Size, source: str) -> dict[str, int]:
    """Returns the options of attention pooling that differ from those of the blocks."""
    heads = shape(arrays, _POOL_QUERY, 3, source)[1]
    hidden = shape(arrays, _POOL_HIDDEN, 2, source)[1]
    return {
        "pool_heads": 0 if heads == size.heads else heads,
        "pool_hidden": 0 if hidden == size.hidden else hidden,
    }


def _positions(arrays: Arrays, form: str) -> str:
    if names.POSITION in arrays:
        return "learned"
    return "none" if form == "timm" else "sincos2d"


def _rotation(arrays: Arrays, form: str, source: str, facts: Facts) -> Rotary | None:
    if f"{_ATTENTION}frequencies" in arrays:
        return facts.rope or Rotary("mixed", 10.0, column_first=True)
    if form == "timm" and names.POSITION not in arrays and not facts.rope:
        raise SettingError(
            f"{source} has no learned positions, and does not record which rotary positions it was "
            f"trained with: {_DESCRIBE}."
        )
    return facts.rope


def _registers(arrays: Arrays) -> int:
    return arrays["registers"].shape[1] if "registers" in arrays else 0


def _prefix(arrays: Arrays) -> int:
    """Returns the number of tokens before those of the patches."""
    return ("cls" in arrays) + _registers(arrays)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _stem(arrays: Arrays) -> tuple[int, ...] | None:
    """Returns the number of units of each stage of a hybrid's stem."""
    if "conv_root/kernel" not in arrays:
        return None
    stages: dict[str, set[str]] = {}
    for name in arrays:
        stage, _, rest = name.partition("/")
        if stage.startswith("block"):
            stages.setdefault(stage, set()).add(rest.split("/")[0])
    return tuple(
        len(stages[f"block{i + 1}"]) for i in range(len(stages)) if f"block{i + 1}" in stages
    )
