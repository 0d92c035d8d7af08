"""A re-weighted ViT in NumPy, in float64, one image and one head at a time."""

from collections.abc import Mapping

import numpy as np
from scipy import special


def _norm(tokens: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = tokens.mean(-1, keepdims=True)
    variance = ((tokens - mean) ** 2).mean(-1, keepdims=True)
    return (tokens - mean) / np.sqrt(variance + 1e-6) * scale + bias


def _gelu(values: np.ndarray) -> np.ndarray:
    return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))


def _attention(tokens: np.ndarray, block: Mapping[str, np.ndarray], heads: int) -> np.ndarray:
    out = np.zeros_like(tokens) + block["MultiHeadDotProductAttention_1/out/bias"]
    for head in range(heads):
        query, key, value = (
            tokens @ block[f"MultiHeadDotProductAttention_1/{name}/kernel"][:, head]
            + block[f"MultiHeadDotProductAttention_1/{name}/bias"][head]
            for name in ("query", "key", "value")
        )
        weights = special.softmax(query @ key.T / np.sqrt(query.shape[-1]), axis=-1)
        out += weights @ value @ block["MultiHeadDotProductAttention_1/out/kernel"][head]
    return out


def logits(
    arrays: Mapping[str, np.ndarray],
    image: np.ndarray,
    *,
    patch: int,
    heads: int,
    alpha: float,
    beta: float,
    plain: bool,
) -> np.ndarray:
    """Logits of one image by ReMem's Eq. 2, from arrays under AugReg names."""
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    tokens = [arrays["cls"][0, 0]]
    for top in range(0, image.shape[0], patch):
        for left in range(0, image.shape[1], patch):
            piece = image[top : top + patch, left : left + patch]
            tokens.append(
                np.tensordot(piece, arrays["embedding/kernel"], 3) + arrays["embedding/bias"]
            )
    z = np.stack(tokens) + arrays["Transformer/posembed_input/pos_embedding"][0]
    depth = sum(name.endswith("MlpBlock_3/Dense_0/bias") for name in arrays)
    for i in range(depth):
        prefix = f"Transformer/encoderblock_{i}/"
        block = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        update = _attention(
            _norm(z, block["LayerNorm_0/scale"], block["LayerNorm_0/bias"]), block, heads
        )
        z = beta * update + (1 if plain else 2 - beta) * z
        hidden = _norm(z, block["LayerNorm_2/scale"], block["LayerNorm_2/bias"])
        hidden = _gelu(
            hidden @ block["MlpBlock_3/Dense_0/kernel"] + block["MlpBlock_3/Dense_0/bias"]
        )
        update = hidden @ block["MlpBlock_3/Dense_1/kernel"] + block["MlpBlock_3/Dense_1/bias"]
        z = alpha * update + (1 if plain else 2 - alpha) * z
    z = _norm(z, arrays["Transformer/encoder_norm/scale"], arrays["Transformer/encoder_norm/bias"])
    return z[0] @ arrays["head/kernel"] + arrays["head/bias"]
