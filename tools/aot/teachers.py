"""The networks of pretrained teachers, by their names on the Hugging Face hub."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.models import vit
from remem_jax.models.rotary import Rotary
from remem_jax.weights.facts import Facts


class Network(NamedTuple):
    """A network whose steps are compiled.

    Attributes:
        key: Its name in the names of rows.
        title: Its name in titles.
        size: Its size.
        options: Fields of `vit.VisionTransformer`, as far as they differ from the defaults.
    """

    key: str
    title: str
    size: vit.Size
    options: Mapping[str, Any]

    def make(self, classes: int) -> vit.VisionTransformer:
        """Makes the network with a head for some classes."""
        options: dict[str, Any] = dict(self.options)
        return vit.make(variant=self.size, classes=classes, **options)

    def facts(self) -> Facts:
        """Returns what its arrays do not determine."""
        model = self.make(1)
        return Facts(
            heads=self.size.heads,
            gelu=model.gelu,
            epsilon=model.epsilon,
            pool=model.pool,
            rope=model.rope,
        )


_S = vit.Size(patch=14, features=384, depth=12, heads=6)
_B = vit.Size(patch=16, features=768, depth=12, heads=12)
_L = vit.Size(patch=14, features=1024, depth=24, heads=16)
_DINO = {"gelu": "erf", "registers": 4, "layer_scale": True}
_DINO2 = _DINO | {"prefix_positions": False}
_DINO3 = _DINO | {
    "positions": "none",
    "rope": Rotary("centred", half=True),
    "qkv_bias": "qv",
    "epsilon": 1e-5,
}
_CLIP = {"gelu": "quick", "norm_pre": True, "patch_bias": False, "epsilon": 1e-5}

NETWORKS: Mapping[str, Network] = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": Network(
        "dinov3-S", "DINOv3 ViT-S/16", _S._replace(patch=16), _DINO3
    ),
    "facebook/dinov2-with-registers-small": Network(
        "dinov2-S", "DINOv2 ViT-S/14 with registers", _S, _DINO2
    ),
    "google/siglip2-base-patch16-224": Network(
        "siglip2-B", "SigLIP 2 ViT-B/16", _B, {"gelu": "tanh", "pool": "map"}
    ),
    "openai/clip-vit-base-patch16": Network("clip-B", "CLIP ViT-B/16", _B, _CLIP),
    "openai/clip-vit-large-patch14": Network("clip-L", "CLIP ViT-L/14", _L, _CLIP),
}
