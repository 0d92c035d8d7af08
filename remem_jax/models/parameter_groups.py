"""Learning rates by parameter: of the head and the body, and with layer-wise decay.

A network's parameters form layers from its input to its head: the stem, each block, and the head
with all that follows the last block. The layers are those of timm's `param_groups_layer_decay`:
a ViT's last norm and an EfficientNet's last convolution belong to the last block. Unlike in timm,
learned rotary frequencies have the rate of their block, not that of the head.

Source: Clark et al. 2020, https://arxiv.org/abs/2003.10555, and Bao et al. 2022,
https://arxiv.org/abs/2106.08254 (BEiT), for layer-wise decay.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from remem_jax.checks import require
from remem_jax.models import encoder
from remem_jax.records import Params

# By the names of modules: of ViTs and their hybrid stems, ResNets, RegNets, inverted residuals.
_STEM = re.compile(
    r"(cls|registers|embedding|conv_root|gn_root|block\d+|conv_stem|stem|conv1|bn1)(_\w+)?(/|$)"
    r"|Transformer/(posembed_input|norm_pre)/"
)
_BLOCK = re.compile(rf"Transformer/{encoder.STACK}_(\d+)/|[a-z_]*?(\d+)_[a-z]*(\d+)/")
_STACKED = f"Transformer/{encoder.STACK}/"
_LAST_OF_VIT = "Transformer/encoder_norm/"
_LAST_OF_EFFICIENTNET = ("conv_head/", "bn2/")

# Where a parameter is: one of these, or the numbers of its block.
Place = tuple[float, ...]
_FIRST, _LAST, _HEAD = (-1.0,), (math.inf, 0.0), (math.inf, 1.0)


def rate_factors(
    params: Params, *, is_head: Callable[[str], bool], layer_decay: float, body_rate: float
) -> Params:
    """Returns, for each parameter, the factor of its learning rate.

    Args:
        params: Parameters of a network, or those that are trained; a ViT's blocks may be stacked.
        is_head: Returns whether the parameter of a slash-joined name belongs to the head.
        layer_decay: Factor from each layer to the one below, above 0; 1 is off.
        body_rate: Factor of all parameters but the head's, at least 0; 1 is off.

    Returns:
        Numbers, or for stacked parameters arrays that multiply them.

    Raises:
        SettingError: If there is layer-wise decay and the names have no blocks.
    """
    decays = _decays(params, layer_decay) if layer_decay < 1 else None
    last_norm = "bn2" in params

    def factor(path: tuple[Any, ...], leaf: Any) -> jax.Array | float:
        name = _name(path)
        rate = 1.0 if is_head(name) else body_rate
        if decays is None:
            return rate
        if not name.startswith(_STACKED):
            return rate * decays[_place(name, last_norm=last_norm)]
        stacked = [rate * decays[(float(i),)] for i in range(leaf.shape[0])]
        return jnp.asarray(stacked, jnp.float32).reshape(-1, *(1,) * (leaf.ndim - 1))

    return jax.tree.map_with_path(factor, params)


def _decays(params: Params, layer_decay: float) -> dict[Place, float]:
    """Returns the factor at each place of some parameters; that of the head is 1."""
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    last_norm = "bn2" in params
    places = {_place(name, last_norm=last_norm) for name in names if not name.startswith(_STACKED)}
    stacked = jax.tree.leaves(params.get("Transformer", {}).get(encoder.STACK, {}))
    places |= {(float(i),) for i in range(stacked[0].shape[0] if stacked else 0)}
    blocks = places - {_FIRST, _LAST, _HEAD}
    require(
        len(blocks) > 0,
        "layer_decay must be 1: the network's parameters are in no numbered blocks, such as "
        "layer1_0, blocks_0_0 or encoderblock_0, so its layers have no order.",
    )
    layers = [*sorted(places - {_LAST, _HEAD}), _HEAD]
    decays = {place: layer_decay ** (len(layers) - 1 - i) for i, place in enumerate(layers)}
    return decays | {_LAST: decays[max(blocks)]}


def _place(name: str, *, last_norm: bool) -> Place:
    """Returns where a parameter is.

    Args:
        name: Its slash-joined name.
        last_norm: Whether the last convolution has a BatchNorm before pooling (EfficientNets).
    """
    if _STEM.match(name):
        return _FIRST
    if match := _BLOCK.match(name):
        return tuple(float(number) for number in match.groups() if number is not None)
    if name.startswith(_LAST_OF_VIT) or (last_norm and name.startswith(_LAST_OF_EFFICIENTNET)):
        return _LAST
    return _HEAD


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(key.key for key in path)
