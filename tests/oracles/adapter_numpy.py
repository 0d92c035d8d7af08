"""A ViT with adapters in NumPy, in float64, one image and one block at a time."""

import numpy as np

from tests.oracles import vit_numpy


def _adapted(update: np.ndarray, sub_block: vit_numpy.Arrays) -> np.ndarray:
    """Applies the adapter of a sub-block to its output, if it has one."""
    if "Adapter_0/down/kernel" not in sub_block:
        return update
    x = update @ sub_block["Adapter_0/down/kernel"] + sub_block["Adapter_0/down/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return update + x @ sub_block["Adapter_0/up/kernel"] + sub_block["Adapter_0/up/bias"]


def logits(
    arrays: vit_numpy.Arrays,
    image: np.ndarray,
    *,
    patch: int,
    heads: int,
    alpha: float,
    beta: float,
) -> np.ndarray:
    """Returns the logits of one image; residuals have weights 2 - alpha and 2 - beta."""
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    z = vit_numpy._tokens(arrays, image, patch)
    depth = sum(name.endswith("MlpBlock_3/Dense_0/bias") for name in arrays)
    for i in range(depth):
        block = vit_numpy._part(arrays, f"Transformer/encoderblock_{i}/")
        attention = vit_numpy._part(block, "MultiHeadDotProductAttention_1/")
        normed = vit_numpy._norm(z, block["LayerNorm_0/scale"], block["LayerNorm_0/bias"])
        update = vit_numpy._attention(normed, normed, attention, heads)
        z = beta * _adapted(update, attention) + (2 - beta) * z
        mlp = vit_numpy._part(block, "MlpBlock_3/")
        normed = vit_numpy._norm(z, block["LayerNorm_2/scale"], block["LayerNorm_2/bias"])
        update = vit_numpy._mlp(normed, mlp, exact_gelu=False)
        z = alpha * _adapted(update, mlp) + (2 - alpha) * z
    scale, bias = (arrays[f"Transformer/encoder_norm/{name}"] for name in ("scale", "bias"))
    return vit_numpy._norm(z, scale, bias)[0] @ arrays["head/kernel"] + arrays["head/bias"]
