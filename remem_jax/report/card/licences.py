"""What is known of the licences of data and of pretrained weights, and their names on the Hub.

Nothing is guessed: what is not known for certain is called unknown.
"""

from typing import NamedTuple

from remem_jax.data import registry
from remem_jax.weights import catalog

UNKNOWN = "unknown: state it before you publish"
_DIGITS = "https://archive.ics.uci.edu/dataset/80"
_BUCKET = "https://github.com/google-research/vision_transformer"
# Data sets whose owners, or who speak for them, have them on the Hub.
_HUB_DATA = {
    "cifar100": "uoft-cs/cifar100",
    "food101": "ethz/food101",
    "svhn": "ufldl-stanford/svhn",
}
# Files of the bucket that timm 1.0 has converted, by our names; the bytes of others are not there.
HUB_WEIGHTS = {
    "augreg:Ti/16": "timm/vit_tiny_patch16_224.augreg_in21k",
    "augreg:S/16": "timm/vit_small_patch16_224.augreg_in21k",
    "augreg:B/16": "timm/vit_base_patch16_224.augreg_in21k",
    "augreg:R+Ti/16": "timm/vit_tiny_r_s16_p8_224.augreg_in21k",
    "augreg-i1k-384:Ti/16": "timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k",
    "augreg-i1k-384:S/16": "timm/vit_small_patch16_384.augreg_in21k_ft_in1k",
    "augreg-i1k-384:R+Ti/16": "timm/vit_tiny_r_s16_p8_384.augreg_in21k_ft_in1k",
    "sam:B/32": "timm/vit_base_patch32_224.sam_in1k",
    "sam:B/16": "timm/vit_base_patch16_224.sam_in1k",
}


class Licence(NamedTuple):
    """What is known of a work.

    Attributes:
        terms: Its licence, in words.
        page: Where to read on; empty where there is none.
        hub: Its name on the Hub; empty where it has none, or none is known.
    """

    terms: str
    page: str = ""
    hub: str = ""


def of_data(name: str) -> Licence:
    """Of a data set, as `config.data.name` has it; a user's own is unknown."""
    if name == "digits":
        return Licence("see its page", _DIGITS)
    record = registry.RECORDS.get(name)
    if record is None:
        return Licence(UNKNOWN)
    page = record.page.replace("~", "%7E")  # Which Markdown would take for a mark.
    return Licence(record.licence, page, _HUB_DATA.get(name, ""))


def of_weights(init: str) -> Licence:
    """Of what a teacher starts from, as `config.teacher.init` has it; a user's file is unknown."""
    if not init:
        return Licence("none is needed: the teacher starts from random weights")
    if init in catalog.BUNDLED:
        return Licence(_apache("Tiny ImageNet"))
    published = init in catalog.PUBLISHED or init.startswith("augreg:")
    if not published:
        return Licence(UNKNOWN)
    found = catalog.find(init)
    hub = {catalog.PUBLISHED[name].path: there for name, there in HUB_WEIGHTS.items()}
    return Licence(_apache(found.pretraining), _BUCKET, hub.get(found.path, ""))


def _apache(pretraining: str) -> str:
    return (
        f"Apache-2.0; they learned from images of {pretraining}, and ImageNet's terms of access "
        "are for non-commercial research and education: whether these bind what was learned is for "
        "you to judge"
    )
