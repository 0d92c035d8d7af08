"""Vision Transformers as students: timm's networks, with the options of their initial weights."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from remem_jax.models import layers, vit

STEMS = ("imagenet",)
GELUS = ("erf", "tanh")  # Those of `mlp.GELUS` that a student may have.
ARCHITECTURE = {"pool": "cls", "gelu": "erf"}  # timm's defaults.
# timm's options by pool, as far as they differ from its defaults.
POOLS = {
    "cls": {},
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "map": {"global_pool": "map", "class_token": False},
}


def make(
    size: vit.Size,
    *,
    stem: str = "imagenet",
    dtype: Any = jnp.float32,
    pool: str = ARCHITECTURE["pool"],
    gelu: str = ARCHITECTURE["gelu"],
    **options: Any,
) -> vit.VisionTransformer:
    """Builds a ViT as a student, with timm's defaults and timm's initial parameters.

    Args:
        size: Size of the ViT.
        stem: "imagenet"; a ViT has no other.
        dtype: Type of the computation; parameters and logits are float32.
        pool: See `vit.VisionTransformer`. Pretrained weights determine it.
        gelu: "erf", timm's default, or "tanh". Pretrained weights determine it, because AugReg's
            and big_vision's were trained with tanh.
        **options: The fields `classes`, `normalisation`, `dropout` and `drop_path` of
            `vit.VisionTransformer`.

    Raises:
        ValueError: If an option's value is unknown.
    """
    layers.require_options(dtype=dtype)
    for name, value, known in (("stem", stem, STEMS), ("gelu", gelu, GELUS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    model = vit.make(variant=size, pool=pool, gelu=gelu, initialisation="timm", **options)
    return model.clone(dtype=jnp.dtype(dtype).name)


def timm_options(architecture: Mapping[str, str], image_size: int) -> dict[str, Any]:
    """Returns the arguments of `timm.create_model` that give the same network.

    Args:
        architecture: The options `pool` and `gelu` of `make`, as far as they are not the default.
        image_size: Side of the images, in pixels.
    """
    used = {**ARCHITECTURE, **architecture}
    options: dict[str, Any] = {"img_size": image_size, **POOLS[used["pool"]]}
    if used["gelu"] == "tanh":
        options["act_layer"] = "gelu_tanh"
    return options
