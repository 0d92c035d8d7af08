"""The catalogue of recommended teachers on the Hugging Face Hub, by size.

`catalog` has the ViTs of Google's bucket, which the paper used. These are later ones, and `timm`
serves each under one name.

Sources: licences, pixels and normalisation are from timm's `pretrained_cfg`, which a test compares;
what a licence allows is from the licence or from the page of the publisher.
"""

import difflib
import re
from collections.abc import Mapping
from typing import NamedTuple

from remem_jax.models import normalisation
from remem_jax.models.normalisation import Normalisation

_FEATURES = {"small": 384, "medium": 768, "large": 1024}
SIZES = tuple(_FEATURES)
EXAMPLE = "timm/vit_small_patch14_reg4_dinov2.lvd142m"

_IMAGENET, _HALF = normalisation.IMAGENET, normalisation.IDENTITY
_CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_APACHE, _MIT, _DINOV3 = "apache-2.0", "mit", "dinov3-license"
_FAIR, _APPLE = "fair-noncommercial-research-license", "apple-ascl"
_PERMISSIVE = "allowed"
_BY_META = (
    "allowed under the conditions of Meta's DINOv3 License, on redistribution and uses: read it"
)
_RESEARCH = "not allowed: Meta's FAIR licence is for noncommercial research"
_OPENAI = "allowed, but OpenAI's model card calls deployed uses out of scope"
_DFN = (
    "unclear: timm's page states Apple's sample code licence, Apple's own page its licence for "
    "research models (apple-amlr)"
)
_LVD3, _LVD2, _WEBLI = "LVD-1689M", "LVD-142M", "WebLI"
_I22K = "ImageNet-22k, then -1k"


_METACLIP = ("400m", "2pt5b")


class Published(NamedTuple):
    """A recommended teacher.

    Attributes:
        repository: Its repository on the Hub, the value of `config.teacher.init`.
        size: One of `SIZES`: about 22, 86 or 300 million parameters.
        pixels: Usual side of its images, in pixels.
        normalisation: Normalisation of its images.
        pretraining: Data sets that it was trained on.
        licence: Licence of the weights, as timm abbreviates it.
        commercial: Whether commercial use is allowed; None if that is unclear.
        terms: The same in words, with conditions.
        note: What it is good at, or what to know about it.
    """

    repository: str
    size: str
    pixels: int
    normalisation: Normalisation
    pretraining: str
    licence: str
    commercial: bool | None
    terms: str
    note: str

    @property
    def architecture(self) -> str:
        """Name of the network in timm."""
        return natively(self.repository, self.name.partition(".")[0])

    @property
    def name(self) -> str:
        """Name of the weights in timm, ARCHITECTURE.TAG."""
        return self.repository.partition("/")[2]

    @property
    def verdict(self) -> str:
        """Whether commercial use is allowed: "yes", "conditions", "no" or "unclear"."""
        if self.commercial is None:
            return "unclear"
        if not self.commercial:
            return "no"
        return "yes" if self.terms == _PERMISSIVE else "conditions"

    @property
    def features(self) -> int:
        """Width of a token."""
        return _FEATURES[self.size]

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        match = re.search(r"_patch(\d+)_", f"{self.architecture}_")
        return int(match[1]) if match else 0


def _dinov3(size: str, network: str) -> Published:
    return Published(
        f"timm/{network}.lvd1689m",
        *(size, 256, _IMAGENET, _LVD3, _DINOV3, True, _BY_META),
        "DINOv3, self-supervised: trained without labels or texts",
    )


def _dinov2(size: str, network: str) -> Published:
    return Published(
        f"timm/{network}.lvd142m",
        *(size, 518, _IMAGENET, _LVD2, _APACHE, True, _PERMISSIVE),
        "DINOv2 with registers, self-supervised; any multiple of 14 pixels, such as 224",
    )


def _siglip2(size: str, network: str, pixels: int) -> Published:
    return Published(
        f"timm/{network}.v2_webli",
        *(size, pixels, _HALF, _WEBLI, _APACHE, True, _PERMISSIVE),
        "SigLIP 2, trained on images and their texts; pooled by attention",
    )


_PUBLISHED = (
    _dinov3("small", "vit_small_patch16_dinov3"),
    _dinov2("small", "vit_small_patch14_reg4_dinov2"),
    Published(
        "timm/deit3_small_patch16_224.fb_in22k_ft_in1k",
        *("small", 224, _IMAGENET, _I22K, _APACHE, True, _PERMISSIVE),
        "DeiT III, supervised: for classes like ImageNet's",
    ),
    Published(
        "timm/eva02_small_patch14_336.mim_in22k_ft_in1k",
        *("small", 336, _CLIP, _I22K, _MIT, True, _PERMISSIVE),
        "EVA-02, masked images and then labels; rotary positions, SwiGLU",
    ),
    Published(
        "timm/vit_small_patch16_dinov3_qkvb.eupe_lvd1689m",
        *("small", 256, _IMAGENET, _LVD3, _FAIR, False, _RESEARCH),
        "EUPE, distilled from several large encoders",
    ),
    _dinov3("medium", "vit_base_patch16_dinov3"),
    _dinov2("medium", "vit_base_patch14_reg4_dinov2"),
    _siglip2("medium", "vit_base_patch16_siglip_224", 224),
    Published(
        "timm/vit_base_patch16_clip_224.openai",
        *("medium", 224, _CLIP, "WIT-400M", _APACHE, True, _OPENAI),
        "CLIP, trained on images and their texts, with the quick GELU",
    ),
    Published(
        "timm/vit_base_patch16_clip_224.datacompxl",
        *("medium", 224, _CLIP, "DataComp-1B", _APACHE, True, _PERMISSIVE),
        "CLIP by OpenCLIP's authors, on open data",
    ),
    Published(
        "timm/vit_pe_core_base_patch16_224.fb",
        *("medium", 224, _HALF, "Meta's web data", _APACHE, True, _PERMISSIVE),
        "Perception Encoder, trained on images and videos and their texts",
    ),
    _dinov3("large", "vit_large_patch16_dinov3"),
    _dinov2("large", "vit_large_patch14_reg4_dinov2"),
    _siglip2("large", "vit_large_patch16_siglip_256", 256),
    Published(
        "timm/vit_large_patch14_clip_224.dfn2b",
        *("large", 224, _CLIP, "DFN-2B", _APPLE, None, _DFN),
        "CLIP by Apple, on filtered data, with the quick GELU",
    ),
    Published(
        "timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
        *("large", 448, _CLIP, "Merged-38M, ImageNet-22k, -1k", _MIT, True, _PERMISSIVE),
        "EVA-02, masked images and then labels; rotary positions, SwiGLU",
    ),
)
PUBLISHED: Mapping[str, Published] = {teacher.repository: teacher for teacher in _PUBLISHED}


# Repositories of timm whose weights were trained with the quick GELU, although their config.json
# may name the network with that by erf.
QUICK = frozenset(
    f"timm/vit_{name}"
    for name in (
        *(
            f"base_patch{patch}_clip_224.metaclip_{data}"
            for patch in (16, 32)
            for data in _METACLIP
        ),
        *(f"large_patch14_clip_224.metaclip_{data}" for data in _METACLIP),
        *("huge_patch14_clip_224.metaclip_2pt5b", "gigantic_patch14_clip_224.metaclip_2pt5b"),
        "huge_patch14_clip_224.metaclip2_worldwide",
        *("base_patch16_clip_224.openai", "base_patch32_clip_224.openai"),
        *("large_patch14_clip_224.openai", "large_patch14_clip_336.openai"),
        *("large_patch14_clip_224.dfn2b", "huge_patch14_clip_224.dfn5b"),
        *("huge_patch14_clip_378.dfn5b", "base_patch32_clip_224.laion400m_e32"),
    )
)


def natively(repository: str, architecture: str) -> str:
    """Returns timm's name of the network that weights were trained in.

    Args:
        repository: Their repository; see `QUICK`.
        architecture: The network that its config.json states.
    """
    if repository not in QUICK or "quickgelu" in architecture:
        return architecture
    return architecture.replace("_clip_", "_clip_quickgelu_")


def similar(init: str) -> list[str]:
    """Returns the repositories that resemble a misspelt name, with or without an owner."""
    names = {teacher.name: teacher.repository for teacher in _PUBLISHED}
    close = difflib.get_close_matches(init.rpartition("/")[2], names)
    return [names[name] for name in close]
