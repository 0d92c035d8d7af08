"""timm's form of attention layers: stacked projections, and learned rotary frequencies.

Source: github.com/huggingface/pytorch-image-models, `layers/attention.py`, `eva.py` and
`layers/attention_pool.py`.
"""

from collections.abc import Iterator

import numpy as np

from remem_jax.checks import SettingError, require
from remem_jax.models import vit

HEAD_FEATURES = 64  # Features per attention head, except in the largest ViTs.
Arrays = dict[str, np.ndarray]
_ROTATION = "rope.freqs"  # Frequencies of all blocks.


def usual_heads(features: int) -> int:
    """Returns the number of heads of the variant with as many features, or one per 64 features."""
    known = {size.features: size.heads for size in vit.VARIANTS.values()}
    return known.get(features, features // HEAD_FEATURES)


def layers(blocks: list[tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Yields our prefix and timm's of each attention layer."""
    for (i,) in blocks:
        start = f"Transformer/encoderblock_{i}/"
        yield f"{start}MultiHeadDotProductAttention_1/", f"blocks.{i}.attn."
    yield "MAPHead_0/MultiHeadDotProductAttention_0/", "attn_pool."


def to_timm(params: Arrays, ours: str, timm: str, projections: str) -> Arrays:
    """Removes an attention layer from our parameters, and returns it in timm's form."""
    if f"{ours}out/kernel" not in params:
        return {}
    layer_arrays: Arrays = {}
    for stack, layers in _kernels(timm, projections).items():
        kernels = [params.pop(f"{ours}{layer}/kernel") for layer in layers]
        flat = [kernel.reshape(kernel.shape[0], -1).T for kernel in kernels]
        layer_arrays[f"{timm}{stack}.weight"] = np.concatenate(flat)
        biases = {layer: params.pop(f"{ours}{layer}/bias", None) for layer in layers}
        present = {layer: bias.reshape(-1) for layer, bias in biases.items() if bias is not None}
        if len(present) == len(layers):
            layer_arrays[f"{timm}{stack}.bias"] = np.concatenate(list(present.values()))
        else:
            layer_arrays |= {f"{timm}{layer[0]}_bias": bias for layer, bias in present.items()}
    out = params.pop(f"{ours}out/kernel")
    layer_arrays[f"{timm}proj.weight"] = out.reshape(-1, out.shape[-1]).T
    if f"{ours}out/bias" in params:
        layer_arrays[f"{timm}proj.bias"] = params.pop(f"{ours}out/bias")
    return layer_arrays


def from_timm(arrays: Arrays, ours: str, timm: str, heads: int) -> Arrays:
    """Removes an attention layer from timm's arrays, and returns it in our form."""
    weight = arrays.get(f"{timm}proj.weight")
    if weight is None:
        return {}
    features = weight.shape[0]
    heads = heads or usual_heads(features)
    if not heads or features % heads:
        raise SettingError(
            f"{timm}proj.weight has {features} features, which do not divide into {heads} heads; "
            "give the number of heads, which timm's files do not record."
        )
    shape = (heads, features // heads)
    _require_shape(f"{timm}proj.weight", weight, (features, features))
    layer_arrays: Arrays = {
        f"{ours}out/kernel": arrays.pop(f"{timm}proj.weight").T.reshape(*shape, features)
    }
    if f"{timm}proj.bias" in arrays:
        layer_arrays[f"{ours}out/bias"] = arrays.pop(f"{timm}proj.bias")
    projections = "separate" if f"{timm}q_proj.weight" in arrays else "stacked"
    for stack, layers in _kernels(timm, projections).items():
        name = f"{timm}{stack}.weight"
        require(name in arrays, f"The timm checkpoint is not a supported ViT: it has no {name}.")
        kernels = _split(arrays, name, layers, features, features)
        biases = _split(arrays, f"{timm}{stack}.bias", layers, features)
        biases |= {
            layer: arrays.pop(f"{timm}{layer[0]}_bias")
            for layer in layers
            if f"{timm}{layer[0]}_bias" in arrays
        }
        for layer, kernel in kernels.items():
            layer_arrays[f"{ours}{layer}/kernel"] = kernel.T.reshape(features, *shape)
        for layer, bias in biases.items():
            layer_arrays[f"{ours}{layer}/bias"] = bias.reshape(shape)
    return layer_arrays


def _split(arrays: Arrays, name: str, layers: tuple[str, ...], features: int, *rest: int) -> Arrays:
    """Removes stacked projections, or their biases, and returns those of each layer."""
    if name not in arrays:
        return {}
    stacked = arrays.pop(name)
    _require_shape(name, stacked, (len(layers) * features, *rest))
    return dict(zip(layers, np.split(stacked, len(layers)), strict=True))


def rotation_to_timm(params: Arrays, blocks: list[tuple[int, ...]]) -> Arrays:
    """Removes the learned frequencies of all blocks, and returns them stacked."""
    layers = [
        params.pop(f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/frequencies", None)
        for (i,) in blocks
    ]
    present = [layer for layer in layers if layer is not None]
    return {_ROTATION: np.stack(present, axis=1)} if present else {}


def rotation_from_timm(arrays: Arrays, blocks: list[tuple[int, ...]]) -> Arrays:
    """Removes the learned frequencies of all blocks, and returns those of each."""
    if _ROTATION not in arrays:
        return {}
    stacked: np.ndarray = arrays.pop(_ROTATION)
    return {
        f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/frequencies": stacked[:, n]
        for n, (i,) in enumerate(blocks)
    }


def _kernels(timm: str, projections: str) -> dict[str, tuple[str, ...]]:
    """Returns timm's names of an attention's projections, and what is stacked in each."""
    if timm == "attn_pool.":
        return {"q": ("query",), "kv": ("key", "value")}
    if projections == "separate":
        return {"q_proj": ("query",), "k_proj": ("key",), "v_proj": ("value",)}
    return {"qkv": ("query", "key", "value")}


def _require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise SettingError(f"{name} is mis-shaped: {array.shape} instead of {shape}.")
