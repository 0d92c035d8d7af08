"""Folds the re-weighting of a ViT (ReMem, Eq. 2) into its parameters, for any ViT code."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from remem_jax.checks import SettingError, inside, one_of
from remem_jax.models import vit
from remem_jax.records import Params
from remem_jax.weights import timm

_OUTPUTS = {"attention": "MultiHeadDotProductAttention_1/out/", "mlp": "MlpBlock_3/Dense_1/"}


def fold(
    params: Params,
    *,
    mlp_weight: float,
    attention_weight: float,
    residual: str,
    pruned_mlp: int = 0,
    pruned_attention: int = 0,
) -> Params:
    """Returns the parameters of a plain ViT with the outputs of a re-weighted and pruned one.

    A sub-block of weight w maps tokens z to `w * f(LN(z)) + r * z`, where r is 2 - w, or 1 for the
    "plain" residual. Let s be the product of all r up to and including this one. Then the tokens
    z / s satisfy `z / s = (w / s) * f(LN(z)) + (z before) / (s before)`, and LN ignores a scale.
    So they are the tokens of a plain ViT whose output projections, kernel and bias, are multiplied
    by w / s. Nothing else changes: the last norm removes the last s, whatever the pooling.

    This is exact except for the norms' epsilon, 1e-6, which is added to the variance of z / s
    instead of that of z: the outputs of a norm differ by at most 1e-6 / 2 divided by the smaller of
    the two variances, relatively. Products are computed in float64 and rounded to float32.

    The residual of a pruned sub-block has the weight 1. The sub-block has no parameters; in the
    plain ViT all of its arrays are zeros, so that it adds nothing.

    Args:
        params: Parameters of the re-weighted ViT, nested or flat by slash-joined name.
        mlp_weight: See `vit.VisionTransformer`.
        attention_weight: See `vit.VisionTransformer`.
        residual: See `vit.VisionTransformer`.
        pruned_mlp: See `vit.VisionTransformer`.
        pruned_attention: See `vit.VisionTransformer`.

    Returns:
        NumPy arrays, nested or flat like `params`.

    Raises:
        SettingError: If a weight is out of range, or the parameters do not fit the pruning.
    """
    weights = {"attention": attention_weight, "mlp": mlp_weight}
    pruned = {"attention": pruned_attention, "mlp": pruned_mlp}
    one_of("residual", residual, vit.RESIDUALS)
    for name, weight in weights.items():
        inside(f"{name}_weight", weight, 0, 2)
    nested = any(isinstance(value, Mapping) for value in params.values())
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    folded = {str(name): np.asarray(jax.device_get(leaf)) for name, leaf in flat.items()}
    depth = _depth(folded, pruned)
    folded |= _pruned_arrays(folded, depth, pruned)
    scale = 1.0
    for i in range(depth):
        for name, output in _OUTPUTS.items():
            if i >= depth - pruned[name]:
                continue
            scale *= 2 - weights[name] if residual == "two_minus" else 1
            for leaf in ("kernel", "bias"):
                array_name = f"Transformer/encoderblock_{i}/{output}{leaf}"
                product = folded[array_name].astype(np.float64) * (weights[name] / scale)
                folded[array_name] = product.astype(np.float32)
    return traverse_util.unflatten_dict(folded, sep="/") if nested else folded


def _depth(arrays: Mapping[str, np.ndarray], pruned: Mapping[str, int]) -> int:
    """Returns the number of blocks, including those whose sub-blocks are all pruned."""
    depths = {
        name: sum(array.endswith(f"{output}kernel") for array in arrays) + pruned[name]
        for name, output in _OUTPUTS.items()
    }
    if depths["attention"] != depths["mlp"]:
        raise SettingError(
            f"Pruned of {pruned['attention']} attention sub-blocks and {pruned['mlp']} MLPs, the "
            f"parameters would have depths {depths['attention']} and {depths['mlp']}: give "
            "pruned_attention and pruned_mlp as the model has them."
        )
    return depths["mlp"]


def _pruned_arrays(
    arrays: Mapping[str, np.ndarray], depth: int, pruned: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Returns zeros for the pruned sub-blocks, with the sizes of the others or the usual sizes."""
    features = arrays["Transformer/encoder_norm/scale"].shape[0]
    block = "Transformer/encoderblock_0/"
    out = arrays.get(f"{block}{_OUTPUTS['attention']}kernel")
    heads = timm.usual_heads(features) or 1 if out is None else out.shape[0]
    head = (heads, features // heads)
    dense = arrays.get(f"{block}{_OUTPUTS['mlp']}kernel")
    hidden = 4 * features if dense is None else dense.shape[0]
    attention: dict[str, tuple[int, ...]] = {
        f"LayerNorm_0/{leaf}": (features,) for leaf in ("scale", "bias")
    }
    for name in ("query", "key", "value"):
        attention[f"MultiHeadDotProductAttention_1/{name}/kernel"] = (features, *head)
        attention[f"MultiHeadDotProductAttention_1/{name}/bias"] = head
    attention[f"{_OUTPUTS['attention']}kernel"] = (*head, features)
    attention[f"{_OUTPUTS['attention']}bias"] = (features,)
    mlp: dict[str, tuple[int, ...]] = {
        f"LayerNorm_2/{leaf}": (features,) for leaf in ("scale", "bias")
    }
    mlp |= {"MlpBlock_3/Dense_0/kernel": (features, hidden), "MlpBlock_3/Dense_0/bias": (hidden,)}
    mlp |= {f"{_OUTPUTS['mlp']}kernel": (hidden, features), f"{_OUTPUTS['mlp']}bias": (features,)}
    return {
        f"Transformer/encoderblock_{i}/{name}": np.zeros(shape, np.float32)
        for kind, shapes in (("attention", attention), ("mlp", mlp))
        for i in range(depth - pruned[kind], depth)
        for name, shape in shapes.items()
    }
