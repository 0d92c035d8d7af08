"""Folds the re-weighting of a ViT (ReMem, Eq. 2) into its parameters, for any ViT code."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util

from remem_jax.checks import SettingError, inside, one_of, require
from remem_jax.models import vit
from remem_jax.records import Params

_OUTPUTS = {"attention": "MultiHeadDotProductAttention_1/out/", "mlp": "MlpBlock_3/Dense_1/"}
_SCALES = {"attention": "gamma_1", "mlp": "gamma_2"}
_NORMS = ("Transformer/encoder_norm/scale", "fc_norm/scale")


def fold(
    params: Params,
    *,
    mlp_weight: float,
    attention_weight: float,
    residual: str,
    pruned_mlp: int = 0,
    pruned_attention: int = 0,
    unpruned: Mapping[str, Sequence[int]] | None = None,
) -> Params:
    """Returns the parameters of a plain ViT with the outputs of a re-weighted and pruned one.

    A sub-block of weight w maps tokens z to `w * f(LN(z)) + r * z`, where r is 2 - w, or 1 for the
    "plain" residual. Let s be the product of all r up to and including this one. Then the tokens
    z / s satisfy `z / s = (w / s) * f(LN(z)) + (z before) / (s before)`, and LN ignores a scale.
    So they are the tokens of a plain ViT whose output projections, kernel and bias, are multiplied
    by w / s; if a sub-block has LayerScale, its vector is multiplied instead. Rotary positions,
    registers and norms within a sub-block are part of f. The last norm, before or after pooling,
    removes the last s; a ViT without one gets a head whose kernel is multiplied by s, and the
    tokens that it returns are divided by s.

    This is exact except for the norms' epsilon e, which is added to the variance of z / s instead
    of that of z: the outputs of a norm differ by at most e / 2 divided by the smaller of the two
    variances, relatively. Products are computed in float64 and rounded to float32.

    The residual of a pruned sub-block has the weight 1. The sub-block has no parameters; in the
    plain ViT all of its arrays are zeros, so that it adds nothing.

    Args:
        params: Parameters of the re-weighted ViT, nested or flat by slash-joined name.
        mlp_weight: See `vit.VisionTransformer`.
        attention_weight: See `vit.VisionTransformer`.
        residual: See `vit.VisionTransformer`.
        pruned_mlp: See `vit.VisionTransformer`.
        pruned_attention: See `vit.VisionTransformer`.
        unpruned: Shapes of the arrays of the same ViT without pruning, by slash-joined name
            (`augreg.names_and_shapes`); only needed if it is pruned.

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
    if any(pruned.values()):
        folded |= _pruned_arrays(folded, unpruned or {})
    scale = 1.0
    for i in range(depth):
        for name, output in _OUTPUTS.items():
            if i >= depth - pruned[name]:
                continue
            scale *= 2 - weights[name] if residual == "two_minus" else 1
            block = f"Transformer/encoderblock_{i}/"
            scaled = [f"{block}{_SCALES[name]}"]
            if scaled[0] not in folded:
                scaled = [f"{block}{output}{leaf}" for leaf in ("kernel", "bias")]
            _multiply(folded, scaled, weights[name] / scale)
    if not any(name in folded for name in _NORMS):
        require(
            "MAPHead_0/probe" not in folded,
            "A re-weighted ViT with attention pooling and no norm before it cannot be folded.",
        )
        _multiply(folded, [_last_kernel(folded)], scale)
    return traverse_util.unflatten_dict(folded, sep="/") if nested else folded


def _multiply(arrays: dict[str, np.ndarray], names: Sequence[str], factor: float) -> None:
    """Multiplies arrays in place, as far as they exist."""
    for name in names:
        if name in arrays:
            arrays[name] = (arrays[name].astype(np.float64) * factor).astype(np.float32)


def _last_kernel(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the name of the kernel that takes the pooled tokens."""
    return "pre_logits/kernel" if "pre_logits/kernel" in arrays else "head/kernel"


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
    arrays: Mapping[str, np.ndarray], unpruned: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Returns zeros for the arrays of the pruned sub-blocks."""
    require(
        len(unpruned) > 0,
        "A pruned ViT is folded into one of full depth: give the shapes of the latter as unpruned.",
    )
    return {
        name: np.zeros(shape, np.float32)
        for name, shape in unpruned.items()
        if name.startswith("Transformer/encoderblock_") and name not in arrays
    }
