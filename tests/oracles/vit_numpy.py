"""A re-weighted ViT in NumPy, in float64, one image and one head at a time."""

from collections.abc import Mapping

import numpy as np
from scipy import special

Arrays = Mapping[str, np.ndarray]


def _norm(tokens: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = tokens.mean(-1, keepdims=True)
    variance = ((tokens - mean) ** 2).mean(-1, keepdims=True)
    return (tokens - mean) / np.sqrt(variance + 1e-6) * scale + bias


def _gelu(values: np.ndarray, exact: bool) -> np.ndarray:
    if exact:
        return values * special.ndtr(values)
    return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))


def _part(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _attention(queries: np.ndarray, tokens: np.ndarray, layer: Arrays, heads: int) -> np.ndarray:
    out = np.zeros_like(queries) + layer["out/bias"]
    for head in range(heads):
        query, key, value = (
            source @ layer[f"{name}/kernel"][:, head] + layer[f"{name}/bias"][head]
            for name, source in (("query", queries), ("key", tokens), ("value", tokens))
        )
        weights = special.softmax(query @ key.T / np.sqrt(query.shape[-1]), axis=-1)
        out += weights @ value @ layer["out/kernel"][head]
    return out


def _mlp(tokens: np.ndarray, layer: Arrays, exact_gelu: bool) -> np.ndarray:
    hidden = _gelu(tokens @ layer["Dense_0/kernel"] + layer["Dense_0/bias"], exact_gelu)
    return hidden @ layer["Dense_1/kernel"] + layer["Dense_1/bias"]


def _padded(maps: np.ndarray, size: int, stride: int, fill: float) -> np.ndarray:
    """Pads as TensorFlow's SAME does: an odd row or column goes to the end."""
    widths = []
    for side in maps.shape[:2]:
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        widths.append((total // 2, total - total // 2))
    return np.pad(maps, [*widths, (0, 0)], constant_values=fill)


def _windows(maps: np.ndarray, size: int, stride: int, fill: float) -> np.ndarray:
    """Cuts out windows of shape (rows, columns, size, size, channels)."""
    windows = np.lib.stride_tricks.sliding_window_view(
        _padded(maps, size, stride, fill), (size, size), axis=(0, 1)
    )
    return windows[::stride, ::stride].transpose(0, 1, 3, 4, 2)


def _conv(maps: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    return np.tensordot(_windows(maps, kernel.shape[0], stride, 0.0), kernel, 3)


def _group_norm(maps: np.ndarray, layer: Arrays, name: str) -> np.ndarray:
    groups = maps.reshape(*maps.shape[:2], 32, -1)
    mean, variance = (f(groups, (0, 1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(maps.shape)
    return normed * layer[f"{name}/scale"] + layer[f"{name}/bias"]


def _unit(maps: np.ndarray, unit: Arrays, stride: int) -> np.ndarray:
    out = maps
    for i, step in ((1, 1), (2, stride), (3, 1)):
        out = _group_norm(_conv(out, unit[f"conv{i}/kernel"], step), unit, f"gn{i}")
        out = np.maximum(out, 0) if i < 3 else out
    if "conv_proj/kernel" in unit:
        maps = _group_norm(_conv(maps, unit["conv_proj/kernel"], stride), unit, "gn_proj")
    return np.maximum(out + maps, 0)


def _stem(arrays: Arrays, image: np.ndarray) -> np.ndarray:
    maps = _group_norm(_conv(image, arrays["conv_root/kernel"], 2), arrays, "gn_root")
    maps = _windows(np.maximum(maps, 0), 3, 2, -np.inf).max((2, 3))
    stage = 1
    while units := {name.split("/")[1] for name in arrays if name.startswith(f"block{stage}/")}:
        for i in range(1, len(units) + 1):
            stride = 2 if stage > 1 and i == 1 else 1
            maps = _unit(maps, _part(arrays, f"block{stage}/unit{i}/"), stride)
        stage += 1
    return maps


def _sines_and_cosines(row: int, column: int, features: int) -> np.ndarray:
    """Returns the sine-cosine position of one token."""
    quarter = features // 4
    rates = [10_000 ** (-i / (quarter - 1)) for i in range(quarter)]
    waves = (f(at * r) for at in (column, row) for f in (np.sin, np.cos) for r in rates)
    return np.array(list(waves))


def _tokens(arrays: Arrays, image: np.ndarray, patch: int) -> np.ndarray:
    maps = _stem(arrays, image) if "conv_root/kernel" in arrays else image
    learned = arrays.get("Transformer/posembed_input/pos_embedding")
    tokens = [arrays["cls"][0, 0]] if "cls" in arrays else []
    for top in range(0, maps.shape[0], patch):
        for left in range(0, maps.shape[1], patch):
            piece = maps[top : top + patch, left : left + patch]
            token = np.tensordot(piece, arrays["embedding/kernel"], 3) + arrays["embedding/bias"]
            if learned is None:
                token = token + _sines_and_cosines(top // patch, left // patch, len(token))
            tokens.append(token)
    return np.stack(tokens) + (0 if learned is None else learned[0])


def _map_head(z: np.ndarray, head: Arrays, heads: int, exact_gelu: bool) -> np.ndarray:
    attention = _part(head, "MultiHeadDotProductAttention_0/")
    pooled = _attention(head["probe"][0], z, attention, heads)
    normed = _norm(pooled, head["LayerNorm_0/scale"], head["LayerNorm_0/bias"])
    return (pooled + _mlp(normed, _part(head, "MlpBlock_0/"), exact_gelu))[0]


def logits(
    arrays: Arrays,
    image: np.ndarray,
    *,
    patch: int,
    heads: int,
    alpha: float,
    beta: float,
    plain: bool,
    exact_gelu: bool = False,
) -> np.ndarray:
    """Returns the logits of one image by ReMem's Eq. 2, from arrays under AugReg names.

    What the arrays hold says the rest: the stem, the positions (computed where there are none),
    the pool, what is pruned, and a layer with tanh before the head.
    """
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    z = _tokens(arrays, image, patch)
    numbers = [n.split("/")[1].split("_")[1] for n in arrays if "/encoderblock_" in n]
    for i in sorted(set(map(int, numbers))):
        block = _part(arrays, f"Transformer/encoderblock_{i}/")
        attention = _part(block, "MultiHeadDotProductAttention_1/")
        if attention:
            normed = _norm(z, block["LayerNorm_0/scale"], block["LayerNorm_0/bias"])
            update = _attention(normed, normed, attention, heads)
            z = beta * update + (1 if plain else 2 - beta) * z
        mlp = _part(block, "MlpBlock_3/")
        if mlp:
            normed = _norm(z, block["LayerNorm_2/scale"], block["LayerNorm_2/bias"])
            update = _mlp(normed, mlp, exact_gelu)
            z = alpha * update + (1 if plain else 2 - alpha) * z
    z = _norm(z, arrays["Transformer/encoder_norm/scale"], arrays["Transformer/encoder_norm/bias"])
    if "MAPHead_0/probe" in arrays:
        pooled = _map_head(z, _part(arrays, "MAPHead_0/"), heads, exact_gelu)
    else:
        pooled = z[0] if "cls" in arrays else z.mean(0)
    if len(arrays["head/kernel"]) == 2 * len(pooled):  # [CLS], and the mean of the patches.
        pooled = np.concatenate([pooled, z[1:].mean(0)])
    if "pre_logits/kernel" in arrays:
        pooled = np.tanh(pooled @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
    return pooled @ arrays["head/kernel"] + arrays["head/bias"]
