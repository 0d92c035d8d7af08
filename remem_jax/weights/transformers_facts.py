"""What a config.json of Hugging Face's transformers says on an image tower.

A config.json holds only what differs from the defaults of its config class, so these are needed to
read it.

Source: github.com/huggingface/transformers, release 5.24,
`src/transformers/models/*/configuration_*.py`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.checks import SettingError, require
from remem_jax.models.rotary import Rotary
from remem_jax.weights.facts import Facts

# transformers' names of GELU (`activations.py`), and ours. By tanh, its forms differ only in how
# they write the same formula.
GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "quick",
}
SWISH = ("silu", "swish")  # Two names of the activation in SwiGLU.


class Family(NamedTuple):
    """A model type of transformers: its defaults, and how its models pool.

    Attributes:
        heads: Default of num_attention_heads.
        activation: Default of hidden_act.
        epsilon: Default of layer_norm_eps.
        pool: Pooling without a classifier, one of `vit.POOLS`.
        classified: Pooling before the classifier of `...ForImageClassification`; "" if `models.vit`
            has no such pooling, and the classifier is left out.
    """

    heads: int
    activation: str
    epsilon: float
    pool: str
    classified: str


FAMILIES = {
    "vit": Family(12, "gelu", 1e-12, "cls", "cls"),
    "deit": Family(12, "gelu", 1e-12, "cls", "cls"),
    "vit_mae": Family(12, "gelu", 1e-12, "cls", "cls"),
    "vit_msn": Family(12, "gelu", 1e-6, "cls", "cls"),
    "ijepa": Family(12, "gelu", 1e-12, "gap", "gap"),
    "dinov2": Family(12, "gelu", 1e-6, "cls", "cls_gap"),
    "dinov2_with_registers": Family(12, "gelu", 1e-6, "cls", "cls_gap"),
    "dinov3_vit": Family(6, "gelu", 1e-5, "cls", ""),
    # CLIP's classifier takes the mean of the patches before their last norm.
    "clip": Family(12, "quick_gelu", 1e-5, "cls", ""),
    "metaclip_2": Family(12, "quick_gelu", 1e-5, "cls", ""),
    "siglip": Family(12, "gelu_pytorch_tanh", 1e-6, "map", "gap"),
    "siglip2": Family(12, "gelu_pytorch_tanh", 1e-6, "map", "gap"),
}
ROPE_THETA = 100.0  # Default of DINOv3.
_TOWER = "_vision_model"  # Ends the model type of an image tower without its text tower.


def family(config: Mapping[str, Any]) -> str:
    """Returns the model type, a key of `FAMILIES`; that of a two-tower model for its image tower.

    Raises:
        SettingError: If the config names none, or one that is not supported.
    """
    known = ", ".join(sorted(FAMILIES))
    if "model_type" not in config:
        raise SettingError(
            "The arrays have the names of transformers, which do not determine the network: give "
            f"the config.json beside them, with a model_type: one of {known}."
        )
    name = str(config["model_type"]).removesuffix(_TOWER)
    if name not in FAMILIES:
        raise SettingError(
            f"The model type {config['model_type']} of transformers is not supported: take a model "
            f"of one of {known}."
        )
    return name


def facts(config: Mapping[str, Any], *, classifier: bool, gated: bool, attention: bool) -> Facts:
    """Returns the facts on an image tower.

    Args:
        config: Contents of config.json.
        classifier: Whether its classifier is kept, which has its own pooling.
        gated: Whether its MLPs are SwiGLU, so that it has no GELU.
        attention: Whether the arrays have SigLIP's attention pooling.

    Raises:
        SettingError: If the config is not supported, or has an activation that is not.
    """
    name = family(config)
    defaults = FAMILIES[name]
    tower = _tower(config)
    heads = tower.get("num_attention_heads", defaults.heads)
    require(
        isinstance(heads, int) and heads > 0,
        f"The config.json has no number of attention heads, but {heads!r}: fetch it again.",
    )
    pool = defaults.classified if classifier else defaults.pool
    if pool == "map" and not attention:
        pool = "gap"
    theta = tower.get("rope_theta", ROPE_THETA)
    return Facts(
        heads=heads,
        gelu=_gelu(name, tower, gated=gated),
        epsilon=float(tower.get("layer_norm_eps", defaults.epsilon)),
        pool=pool,
        rope=Rotary("centred", base=float(theta), half=True) if name == "dinov3_vit" else None,
        pool_heads=heads if pool == "map" else 0,
    )


def _tower(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the settings of the image tower."""
    # transformers takes `vision_config_dict`, which old files of CLIP have, before `vision_config`.
    for key in ("vision_config_dict", "vision_config"):
        if isinstance(config.get(key), Mapping):
            return config[key]
    return config


def _gelu(name: str, tower: Mapping[str, Any], *, gated: bool) -> str:
    """Returns the GELU of the MLPs; "" if they are SwiGLU."""
    activation = tower.get("hidden_act", FAMILIES[name].activation)
    # DINOv2's gated MLPs have SiLU, whatever the config says.
    if gated and (activation in SWISH or name != "dinov3_vit"):
        return ""
    if gated or activation not in GELUS:
        raise SettingError(
            f"hidden_act is {activation}, which is not supported: take a model with one of "
            f"{', '.join(GELUS)}; in gated MLPs, with silu."
        )
    return GELUS[activation]
