"""Licences of data and of pretrained weights, and their names on the Hub.

No licence is guessed: one that is not known for certain is given as unknown.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from remem_jax.data import bundled, registry
from remem_jax.weights import catalog, teacher_catalog

UNKNOWN = "unknown: state it before you publish"
_DIGITS = "https://archive.ics.uci.edu/dataset/80"
_BUCKET = "https://github.com/google-research/vision_transformer"
# Data sets that their owners, or a representative, publish on the Hub.
_HUB_DATA = {
    "cifar100": "uoft-cs/cifar100",
    "food101": "ethz/food101",
    "svhn": "ufldl-stanford/svhn",
}
# Files of the bucket that timm 1.0 converted, by our names; the Hub has no others.
HUB_WEIGHTS = {
    "bundled:Ti/16": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
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
    """Licence of a data set or of weights.

    Attributes:
        terms: Description of the licence.
        page: Address of more information; may be empty.
        hub: Name on the Hub; empty if there is none or it is unknown.
    """

    terms: str
    page: str = ""
    hub: str = ""

    @property
    def text(self) -> str:
        """The terms, and the page if there is one."""
        return f"{self.terms} ({self.page})" if self.page else self.terms


def of_data(name: str) -> Licence:
    """Returns the licence of the data set `config.data.name`; unknown for a user's data."""
    if name == "digits":
        return Licence("see its page", _DIGITS)
    record = registry.RECORDS.get("eurosat" if name == bundled.EUROSAT_PART else name)
    if record is None:
        return Licence(UNKNOWN)
    page = record.page.replace("~", "%7E")  # Markdown would interpret it.
    return Licence(record.licence, page, _HUB_DATA.get(name, ""))


def of_weights(init: str) -> Licence:
    """Returns the licence of the weights `config.teacher.init`; unknown for a user's file."""
    if not init:
        return Licence("none needed: the teacher was initialised at random")
    if not catalog.has(init):
        return Licence(UNKNOWN)
    weights = catalog.find(init)
    hub = {catalog.find(name).path: repository for name, repository in HUB_WEIGHTS.items()}
    return Licence(_apache(weights.pretraining), _BUCKET, hub.get(weights.path, ""))


def of_teacher(models: Mapping[str, Any]) -> Licence:
    """Returns the licence of a teacher's initial weights; that of a user's file if it is stated.

    Args:
        models: `models` of the results.
    """
    recorded = models.get("teacher_weights")  # Older runs had none.
    if recorded and recorded["licence"] and not recorded["repository"]:
        return Licence(f"{recorded['licence']}, as the config.json beside the file states")
    return of_recorded(recorded) if recorded else of_weights(models["init"])


def of_recorded(record: Mapping[str, Any]) -> Licence:
    """Returns the licence of a teacher's or student's initial weights; unknown for a user's file.

    Args:
        record: Record of the weights, `models.teacher_weights` or `models.student_init` of the
            results.
    """
    if catalog.has(record["init"]):
        return of_weights(record["init"])
    repository, licence = record["repository"], record["licence"]
    page = f"https://huggingface.co/{repository}" if repository else ""
    if not repository or not licence:
        return Licence(UNKNOWN, page, repository)
    pretraining = record["pretraining"]
    terms = _trained(licence, pretraining) if pretraining else f"{licence}, as its page states"
    teacher = teacher_catalog.PUBLISHED.get(repository)
    commercial = f"; commercial use: {teacher.terms}" if teacher else ""
    return Licence(terms + commercial, page, repository)


def _apache(pretraining: str) -> str:
    return _trained("Apache-2.0", pretraining)


def _trained(licence: str, pretraining: str) -> str:
    if "ImageNet" not in pretraining:
        return f"{licence}; trained on images of {pretraining}"
    return (
        f"{licence}; trained on images of {pretraining}, and ImageNet's terms of access are "
        "limited to non-commercial research and education: whether they apply to trained weights "
        "is for you to judge"
    )
